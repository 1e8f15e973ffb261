"""Outcomes out of CSV: what the columns mean, and errors that name row and column."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from gateway.learning.outcomes import Outcomes, OutcomesError, read_outcomes

HEADER = "prompt,small,large"


def rows(count: int = 24, *, start: int = 0) -> list[str]:
    """Questions that the large one answers, and the small one every other time."""
    return [f'"question {n}, and ""more""",{n % 2},True' for n in range(start, start + count)]


def read(folder: Path, *lines: str, name: str = "o.csv", encoding: str = "utf-8") -> Outcomes:
    """What the file says."""
    (folder / name).write_bytes("\n".join(lines).encode(encoding))
    return read_outcomes(folder / name)


def test_a_column_of_scores_per_backend_is_enough(tmp_path: Path) -> None:
    """Numbers, True and False; quoted prompts keep commas, quotes and new lines."""
    found = read(tmp_path, HEADER, *rows(), '"two\nlines",,false', "", ",,")
    assert found.backends == ["small", "large"]
    assert found.costs_assumed
    assert found.prompts[1] == 'question 1, and "more"'
    assert found.prompts[-1] == "two\nlines"
    assert found.scores[1].tolist() == [1.0, 1.0]
    assert np.isnan(found.scores[-1, 0])
    assert found.scores[-1, 1] == 0.0
    assert len(found.prompts) == 25


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("prompt,a,b,cost_usd.a,cost_usd.b,note", "q {n},1,0,0.2,0.1,as {n}"),
        (
            "sample_id,prompt,a,b,a|total_cost,b|total_cost,a|model_response",
            "x{n},q {n},1,0,.2,.1,7",
        ),
        ("prompt;scores.a;scores.b;cost_usd.a;cost_usd.b;words", "q {n};1;0;0.2;0.1;{n}"),
        ("prompt\ta\tb\ta_response\tcost_usd.a\tcost_usd.b", "q {n}\t1\tFALSE\t42\t0.2\t0.1"),
    ],
)
def test_costs_and_answers_are_columns_too(tmp_path: Path, header: str, row: str) -> None:
    """Ours, RouterBench's and RouteLLM's names; any mark that parts; other columns are not read."""
    found = read(tmp_path, header, *(row.format(n=n) for n in range(20)))
    assert found.backends == ["b", "a"]
    assert found.costs[0].tolist() == [0.1, 0.2]
    assert found.scores.mean(0).tolist() == [0.0, 1.0]


def test_split_and_signals_mean_what_they_do_in_json(tmp_path: Path) -> None:
    """A byte-order mark, as spreadsheets write it, and compression are no hindrance."""
    lines = [f"q {n},{'test' if n < 5 else 'train'},1,0,-0.5" for n in range(20)]
    text = "\n".join(["prompt,split,a,b,logprob.b", *lines])
    (tmp_path / "o.csv.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    found = read_outcomes(tmp_path / "o.csv.gz")
    assert found.test.tolist() == [True] * 5 + [False] * 15
    assert found.signals["logprob"][0, found.backends.index("b")] == -0.5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER, *rows(), "q,2,1"], r"row 26, column 'small': '2' is no score; .* scores\.NAME"),
        ([HEADER, *rows(), "q,ja,1"], r"row 26, column 'small': 'ja' is no score; write 0 to 1"),
        ([HEADER, *rows(), ",1,1"], "row 26, column 'prompt': it is empty"),
        ([HEADER, *rows(), "a, b,1,1"], "row 26: 4 cells under 3 columns; .* quotes"),
        (["question,small,large", *rows()], "row 1: no column is called prompt, but question,"),
        (["prompt,small,small", *rows()], "row 1: 2 columns are called 'small'"),
        (["prompt,why", *(f"q {n},because" for n in range(20))], "row 1: no column holds scores"),
        (
            ["prompt,a,cost_usd.a", "q,1,cheap"],
            r"row 2, column 'cost_usd\.a': 'cheap' is no number",
        ),
        (["prompt,a,cost_usd.a", "q,1,-2"], r"row 2: cost_usd\.a: -2\.0 is not a price"),
        (["prompt,split,a", "q,maybe,1"], "row 2: .*maybe"),
        ([], "row 1: there is none"),
        ([HEADER, *rows(3)], "3 rows of outcomes; at least 20"),
        ([HEADER, '"open'], ".*doubles those inside"),
    ],
)
def test_what_is_wrong_is_named_by_row_and_column(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    """Rows as a spreadsheet numbers them, and what to do."""
    with pytest.raises(OutcomesError, match=r"o\.csv: " + message):
        read(tmp_path, *lines)


def test_other_encodings_are_refused_by_name(tmp_path: Path) -> None:
    """Not as words that nobody wrote."""
    with pytest.raises(OutcomesError, match=r"not UTF-8: .*; save it as CSV UTF-8"):
        read(tmp_path, HEADER, "é,1,1", encoding="latin-1")
