"""`headgate report export`: the books for other programs."""

import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from gateway.cli.common import config_option, fail, settings_of
from gateway.cli.database import run_on_engine
from gateway.privacy.model import EXPORTS
from gateway.settings import Settings

_SUFFIXES = {"csv": "csv", "parquet": "parquet", "focus": "focus.csv"}


@click.command()
@click.option(
    "--format",
    "format_",
    type=click.Choice(sorted(_SUFFIXES)),
    default="csv",
    show_default=True,
    help="csv, parquet: a line per charge. focus: FinOps FOCUS 1.0, a month by day.",
)
@click.option("--since", metavar="T", help="RFC 3339 or a date; inclusive.")
@click.option("--until", metavar="T", help="RFC 3339 or a date; exclusive. Default: now.")
@click.option("--month", metavar="YYYY-MM", help="Instead of --since and --until; UTC.")
@click.option("--out", metavar="FILE", help="Default: exports/ in the state folder. -: stdout.")
@config_option
@click.pass_context
def export(
    ctx: click.Context,
    format_: str,
    since: str | None,
    until: str | None,
    month: str | None,
    out: str | None,
    config: str | None,
) -> None:
    """Write the ledger's charges as CSV or Parquet, or a month's bill as FOCUS CSV."""
    from gateway.ledger import export as exports
    from gateway.ledger.focus import focus_csv

    if format_ == "focus" and month is None:
        fail("--format focus needs --month, such as --month 2026-11", code=2)
    if month is not None and (since or until):
        fail("give either --month or --since and --until", code=2)
    if format_ == "parquet" and out == "-":
        fail("--format parquet needs a file", code=2)
    settings = settings_of(ctx, config)
    file = _file(settings, format_, month, out)

    async def write(engine: Any) -> int:
        from gateway.ledger.report_lines import snapshot

        if format_ == "focus":
            with _opened(file) as text:
                return await focus_csv(engine, settings, text, str(month))
        period = _period(since, until, month)
        async with snapshot(engine) as connection:
            if format_ == "parquet":
                assert file is not None, "checked above"
                return await exports.charges_parquet(connection, file, **period)
            with _opened(file) as text:
                return await exports.charges_csv(connection, text, **period)

    try:
        count = run_on_engine(settings, write)
    except exports.ExportError as error:
        fail(str(error))
    if file is not None:
        click.echo(f"{count} lines in {file}")


def _period(since: str | None, until: str | None, month: str | None) -> dict[str, int]:
    from gateway.ledger.month_end import bounds
    from gateway.ledger.report_query import ReportQuery, parse_query

    if month is not None:
        begin, end = bounds(month)
        query = ReportQuery(since=begin, until=end)
    else:
        query = parse_query(since=since, until=until, now=datetime.now(UTC))
    return {"since_us": query.since_us, "until_us": query.until_us}


def _file(settings: Settings, format_: str, month: str | None, out: str | None) -> Path | None:
    """Where to; None: stdout. `data delete` finds what is written to the default place."""
    if out == "-":
        return None
    if out is not None:
        return Path(out)
    folder = Path(settings.state_dir) / EXPORTS
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    label = month or datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S")
    return folder / f"charges-{label}.{_SUFFIXES[format_]}"


def _opened(file: Path | None) -> Any:
    return nullcontext(sys.stdout) if file is None else file.open("w", newline="", encoding="utf-8")
