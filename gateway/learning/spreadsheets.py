"""Outcomes out of a spreadsheet: one prompt a row, one column of scores per backend.

The column `prompt` holds the questions; `id`, `split` and `suite` mean what they do in JSON Lines,
as do `cost_usd.NAME`, `scores.NAME`, `logprob.NAME` and the like. `NAME|total_cost` is a cost, too,
and `NAME|model_response` or `NAME_response` an answer, as in RouterBench's and RouteLLM's files.
Without a column `scores.…` every other column with a number or a True or False in it is that
backend's scores. Empty cells: not asked. Commas, semicolons or tabs part the cells, whichever the
first line tells.
"""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

ENDINGS = (".csv", ".tsv")
PLAIN = ("prompt", "id", "split", "suite")
NUMBERS = ("scores", "cost_usd", "logprob", "margin", "entropy", "completion_tokens")
TEXTS = ("answer_text",)
AFTER = {"|total_cost": "cost_usd", "|model_response": "answer_text", "_response": "answer_text"}
"""What stands behind a backend's name, and the field that it is."""
TRUTH = {"true": 1.0, "false": 0.0}


class _Column(Struct, frozen=True):
    title: str
    field: str
    backend: str = ""


def is_spreadsheet(path: Path) -> bool:
    """By its name; what is compressed, too."""
    return Path(path.name.removesuffix(".gz")).suffix.lower() in ENDINGS


def outcome_rows(text: str, *, scored: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """(its number as a spreadsheet shows it, what a line of JSON would hold) of each row.

    Args:
        scored: prompts alone are not enough.

    Raises:
        ValueError: the message names row and column, and says what to do.
    """
    csv.field_size_limit(sys.maxsize)
    titles, rows = _cells(text)
    columns = _columns(titles, rows)
    if scored and not any(column and column.field == "scores" for column in columns):
        raise ValueError(
            "row 1: no column holds scores; give each backend one, with 1 or True where it "
            "answered well and 0 or False where not"
        )
    for number, row in rows:
        yield number, _outcome(number, row, columns)


def _cells(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and (number, cells) of all rows in which anything stands."""
    first = text.partition("\n")[0]
    mark = max((",", ";", "\t"), key=first.count)
    try:
        titles, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    except ValueError:
        raise ValueError("row 1: there is none; it names the columns, one of them prompt") from None
    except csv.Error as error:
        raise ValueError(
            f"{error}; a cell in quotes ends with one, and doubles those inside"
        ) from None
    titles = [title.strip() for title in titles]
    if "prompt" not in titles:
        raise ValueError(f"row 1: no column is called prompt, but {', '.join(titles)}; name one so")
    for title in titles:
        if title and titles.count(title) > 1:
            raise ValueError(f"row 1: {titles.count(title)} columns are called {title!r}")
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(titles):
            raise ValueError(
                f"row {number}: {len(row)} cells under {len(titles)} columns; put cells that hold "
                f"{mark!r} or a new line into quotes"
            )
    return titles, [(number, row) for number, row in enumerate(rows, start=2) if any(row)]


def _columns(titles: list[str], rows: list[tuple[int, list[str]]]) -> list[_Column | None]:
    """What each column holds; None: nothing that is read."""
    found = [_named(title, titles) for title in titles]
    if not any(column and column.field == "scores" for column in found):
        for place, title in enumerate(titles):
            if title and found[place] is None and any(_reads(row[place]) for _, row in rows):
                found[place] = _Column(title, "scores", title)
    return found


def _named(title: str, titles: list[str]) -> _Column | None:
    """By its title; None: it may hold scores."""
    if title in PLAIN:
        return _Column(title, title)
    field, dot, backend = title.partition(".")
    if dot and backend and field in (*NUMBERS, *TEXTS):
        return _Column(title, field, backend)
    for ending, field in AFTER.items():
        backend = title.removesuffix(ending)
        if backend in titles and backend != title:
            return _Column(title, field, backend)
    return None


def _outcome(number: int, row: list[str], columns: list[_Column | None]) -> dict[str, Any]:
    found: dict[str, Any] = {"scores": {}}
    for cell, column in zip(row, columns, strict=True):
        if column is None or not cell.strip():
            continue
        if column.field in PLAIN:
            found[column.field] = cell
        elif column.field in TEXTS:
            found.setdefault(column.field, {})[column.backend] = cell
        else:
            value = _number(cell)
            if value is None or (column.field == "scores" and not 0 <= value <= 1):
                raise ValueError(f"row {number}, column {column.title!r}: {_wrong(cell, column)}")
            found.setdefault(column.field, {})[column.backend] = value
    if "prompt" not in found:
        raise ValueError(f"row {number}, column 'prompt': it is empty; fill it, or remove the row")
    return found


def _wrong(cell: str, column: _Column) -> str:
    shown = cell if len(cell) <= 40 else f"{cell[:40]}…"
    if column.field != "scores":
        return f"{shown!r} is no number; write one like 0.25, or leave the cell empty"
    said = f"{shown!r} is no score; write 0 to 1, True or False, or nothing where it was not asked"
    if column.title.startswith("scores."):
        return said
    return f"{said}. If this column is none of a backend's, call those that are scores.NAME"


def _reads(cell: str) -> bool:
    return _number(cell) is not None


def _number(cell: str) -> float | None:
    """True and False are numbers, too; None: it is none."""
    told = TRUTH.get(cell.strip().lower())
    if told is not None:
        return told
    try:
        return float(cell)
    except ValueError:
        return None
