"""Reading outcomes: strict, and naming the line that is wrong."""

from pathlib import Path

import numpy as np
import pytest

from backends.evaluation.items import read_items
from gateway.learning.outcomes import OutcomesError, read_outcomes
from tests.gateway.learning import made_up


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", "scores": {"a": 2}}', r"scores\.a: 2.0 is not in 0\.\.1"),
        ('{"scores": {"a": 1}}', "neither prompt nor messages"),
        ('{"prompt": "x"}', "scores"),
        ('{"prompt": "x", "scores": {"a": 1}, "cost_usd": {"a": -1}}', r"cost_usd\.a: -1"),
        ('{"prompt": "x", "scores": {"a": 1}, "split": "maybe"}', "maybe"),
        ("{", "malformed|truncated"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    """The error says file, line and what is wrong."""
    file = made_up.write(tmp_path / "o.jsonl", made_up.rows(30))
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(OutcomesError, match=r"o\.jsonl:31: .*" + message):
        read_outcomes(file)


def test_a_short_or_missing_file_is_refused(tmp_path: Path) -> None:
    """A handful of rows says nothing; no file says less."""
    with pytest.raises(OutcomesError, match="at least 20"):
        read_outcomes(made_up.write(tmp_path / "o.jsonl", made_up.rows(5)))
    with pytest.raises(OutcomesError, match="No such file"):
        read_outcomes(tmp_path / "gone.jsonl")


def test_backends_are_ordered_by_cost_and_without_costs_by_score(tmp_path: Path) -> None:
    """The cheapest comes first; a missing price is the backend's mean."""
    lines = made_up.rows(40)
    plain = read_outcomes(made_up.write(tmp_path / "a.jsonl", lines))
    assert (plain.backends, plain.costs_assumed) == (["cheap-one", "dear-one"], True)
    assert plain.costs[0].tolist() == [0.0, 1.0]
    for line in lines[1:]:
        line["cost_usd"] = {"cheap-one": 0.2, "dear-one": 0.1}
    priced = read_outcomes(made_up.write(tmp_path / "b.jsonl", lines))
    assert (priced.backends, priced.costs_assumed) == (["dear-one", "cheap-one"], False)
    assert np.allclose(priced.costs[0], [0.1, 0.2])


def test_messages_are_read_as_a_request_is(tmp_path: Path) -> None:
    """The last user turn that says something; a backend that was not asked is NaN."""
    lines = made_up.rows(25)
    parts = [{"type": "text", "text": "what now?"}]
    lines.append(
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": parts},
                {"role": "assistant", "content": "this"},
            ],
            "scores": {"cheap-one": 1},
        }
    )
    found = read_outcomes(made_up.write(tmp_path / "o.jsonl", lines))
    assert found.prompts[-1] == "what now?"
    assert np.isnan(found.scores[-1, 1])


def test_frozen_prompts_stay_test_rows(tmp_path: Path) -> None:
    """What `models eval` keeps for measuring is a test row, though its line says train."""
    items = read_items("tasks")
    lines = [{"prompt": i.prompt, "scores": {"a": 1.0}, "split": "train"} for i in items]
    found = read_outcomes(made_up.write(tmp_path / "o.jsonl", lines))
    assert found.test.tolist() == [item.split == "test" for item in items]
