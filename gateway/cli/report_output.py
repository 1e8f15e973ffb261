"""How reports come out: well-set tables with bars, JSON, CSV, pictures; not a command."""

import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import click

from gateway.cli.common import print_json
from gateway.ledger.csv_text import safe_cell
from gateway.ledger.money import decimals_of

BAR = 16
"""Characters of a whole bar."""


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--format, --json and --plot."""
    formats = click.Choice(["table", "json", "csv"])
    for option in (
        click.option("--plot", metavar="FILE.png", help="Draw it, too; needs matplotlib."),
        click.option("--json", "as_json", is_flag=True, help="The same as --format json."),
        click.option("--format", "format_", type=formats, default="table", show_default=True),
    ):
        command = option(command)
    return command


def hand_out(
    found: dict[str, Any],
    *,
    as_json: bool,
    format_: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    texts: int,
    print_table: Callable[[], None],
) -> None:
    """A report in the format that was asked for.

    Args:
        rows, columns, texts: of CSV, as print_csv takes them.
    """
    if as_json or format_ == "json":
        print_json(found)
    elif format_ == "csv":
        print_csv(columns, [[row[name] for name in columns] for row in rows], texts=texts)
    else:
        print_table()


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, texts: int) -> None:
    """One line per row. A cell that a spreadsheet would run as a formula gets an apostrophe.

    Args:
        texts: so many of the first columns are names, the others figures.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([safe_cell(column) for column in columns])
    for row in rows:
        names = [safe_cell(cell) for cell in row[:texts]]
        writer.writerow([*names, *("" if cell is None else cell for cell in row[texts:])])


def bar(share: float, width: int = BAR) -> str:
    """Eighths of a block; a share of 1 is `width` characters wide."""
    eighths = round(max(min(share, 1.0), 0.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


def share_of(part: Decimal, whole: Decimal) -> float:
    """0 of nothing."""
    return float(part / whole) if whole > 0 else 0.0


def set_amounts(columns: Sequence[Sequence[str | None]]) -> list[list[str]]:
    """Columns of dollars with their points below each other: as many decimals as the largest needs.

    JSON and CSV have every digit.
    """
    found = [Decimal(text) for column in columns for text in column if text is not None]
    digits = decimals_of(max(map(abs, found), default=Decimal(0)))
    return [[_amount(text, digits) for text in column] for column in columns]


def _amount(text: str | None, digits: int) -> str:
    return "-" if text is None else f"{Decimal(text):,.{digits}f}"


def dollars(usd: str) -> str:
    """With its sign before the dollar's."""
    return f"-${usd[1:]}" if usd.startswith("-") else f"${usd}"


def count(number: int) -> str:
    """With its thousands apart."""
    return f"{number:,}"
