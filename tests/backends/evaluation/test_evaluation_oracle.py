"""The oracle: the cheapest tier that passes, and what that is worth."""

import pytest

from backends.evaluation.outcomes import Outcome
from tests.benchmarks import bench_family

COSTS = {
    "nano": {"prompt_token_s": 0.0, "output_token_s": 1.0},
    "base": {"prompt_token_s": 0.0, "output_token_s": 10.0},
}


def row(nano: float, base: float, *, task: str = "t", tokens: int = 2) -> Outcome:
    """One question with both verdicts."""
    return Outcome(
        id="",
        prompt="",
        scores={"nano": nano, "base": base},
        split="test",
        suite="tasks",
        part="p",
        task=task,
        prompt_tokens={"nano": 5, "base": 5},
        completion_tokens={"nano": tokens, "base": tokens},
    )


def test_oracle_takes_the_cheapest_that_passes() -> None:
    """The cheap tier where it passes or nobody does, the dear one where only that passes."""
    chosen = [bench_family.oracle(row(*verdicts), COSTS) for verdicts in
              ((1, 1), (1, 0), (0, 1), (0, 0))]  # fmt: skip
    assert chosen == ["nano", "nano", "base", "nano"]


def test_oracle_compares_answers_not_rates() -> None:
    """A dear tier with a short answer may cost less than a cheap one with a long one."""
    one = row(1, 1)
    one = Outcome(**{f: getattr(one, f) for f in one.__struct_fields__ if f != "completion_tokens"},
                  completion_tokens={"nano": 50, "base": 2})  # fmt: skip
    assert bench_family.oracle(one, COSTS) == "base"


def test_points_weigh_task_functions_alike() -> None:
    """Three questions of one function count as much as one of another, in cost as in quality."""
    rows = [row(1, 1, task="a")] * 3 + [row(0, 1, task="b")]
    found = bench_family.points(rows, COSTS)
    assert found["nano"]["pass_rate"] == 0.5
    assert found["base"]["pass_rate"] == found["oracle"]["pass_rate"] == 1.0
    assert found["nano"]["machine_seconds_per_answer"] == 2.0
    assert found["oracle"]["machine_seconds_per_answer"] == pytest.approx((2 + 20) / 2)
    assert bench_family.gain(found) == {"best_tier": "base", "more_points": 0.0, "cost_share": 0.55}


def test_committed_outcomes_give_the_committed_points() -> None:
    """The figures in the results file follow from the committed outcomes and its own rates."""
    import json

    from backends.evaluation.outcomes import read_outcomes
    from tests.benchmarks.environment import RESULTS

    figures = json.loads((RESULTS / "family.json").read_text())
    rows = [row for row in read_outcomes() if row.suite == "tasks"]
    bench_family.check(rows)
    found = bench_family.points(rows, figures["seconds_per_token"])
    for name, expected in figures["points"].items():
        assert found[name]["pass_rate"] == expected["pass_rate"]
        assert found[name]["machine_seconds_per_answer"] == pytest.approx(
            expected["machine_seconds_per_answer"], rel=1e-2
        )
