"""`headgate report`: out of the ledger."""

import csv
import sys
from typing import Any

import click

from gateway.cli.common import config_option, fail, print_json, settings_of
from gateway.cli.database import run_on_engine, table
from gateway.cli.report_batches import batches
from gateway.cli.report_books import accounts, bill, close, correct
from gateway.cli.report_experiment import experiment
from gateway.cli.report_export import export
from gateway.cli.report_insights import anomalies, cache, forecast, hints, monthly
from gateway.cli.report_reconcile import reconcile
from gateway.ledger.csv_text import safe_cell

_LEFT_OUT = ("cached_prompt_tokens", "usd_per_million_tokens", "full_usd_per_million_tokens")
"""Of the table, to fit a screen; JSON and CSV have them."""


@click.group()
def report() -> None:
    """Cost reports out of the ledger."""


_BOOKS = (accounts, correct, bill, close, reconcile, export, batches)
_INSIGHTS = (cache, experiment, forecast, anomalies, hints, monthly)
for _command in (*_BOOKS, *_INSIGHTS):
    report.add_command(_command)


@report.command()
@click.option(
    "--group-by",
    default="",
    metavar="KEYS",
    help="Comma-separated: team, key, user, model, backend, machine, machine_type, policy, rule, "
    "task, kind, day, hour, tag:NAME.",
)
@click.option("--since", metavar="T", help="RFC 3339 or a date; inclusive.")
@click.option("--until", metavar="T", help="RFC 3339 or a date; exclusive. Default: now.")
@click.option("--tz", default="UTC", show_default=True, help="Of dates, days and hours.")
@click.option(
    "--idle-by",
    type=click.Choice(["charges", "tokens", "requests", "groups"]),
    default="charges",
    show_default=True,
    help="What shares out the machines' idle cost: what a row has of it; groups: evenly.",
)
@click.option(
    "--compare", metavar="PERIOD", help="Beside another period: previous, or SINCE..UNTIL."
)
@click.option(
    "--where", "conditions", multiple=True, metavar="KEY=VALUE", help="Only these rows; repeatable."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@config_option
@click.pass_context
def costs(
    ctx: click.Context,
    group_by: str,
    since: str | None,
    until: str | None,
    tz: str,
    idle_by: str,
    compare: str | None,
    conditions: tuple[str, ...],
    format_: str,
    as_json: bool,
    config: str | None,
) -> None:
    """What was spent, by whom, on what; what idle machines cost beside it."""
    from gateway.ledger.compare import compared_report
    from gateway.ledger.reports import costs_report

    settings = settings_of(ctx, config)
    asked: dict[str, Any] = {
        "group_by": group_by,
        "since": since,
        "until": until,
        "tz": tz,
        "filters": _filters(conditions),
        "idle_by": idle_by,
    }

    async def read(engine: Any) -> dict[str, Any]:
        if compare is None:
            return await costs_report(engine, settings, **asked)
        return await compared_report(engine, settings, compare=compare, **asked)

    found = run_on_engine(settings, read)
    if as_json or format_ == "json":
        print_json(found)
    elif format_ == "csv":
        _print_csv(found)
    else:
        _print_table(found)


def _filters(conditions: tuple[str, ...]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals:
            fail(f"--where {condition!r}: KEY=VALUE, such as team=search", code=2)
        filters.setdefault(key.strip(), []).append(value)
    return filters


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the compared period's cost as a figure of its own."""
    if "previous" not in row:
        return row
    flat = {name: value for name, value in row.items() if name != "previous"}
    return {**flat, "previous_cost_usd": row["previous"]["cost_usd"]}


def _print_csv(found: dict[str, Any]) -> None:
    """One line per row. A cell that a spreadsheet would run as a formula gets an apostrophe."""
    groups = found["group_by"]
    figures = list(_flat(found["totals"]))
    columns = [*groups, *figures]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([safe_cell(column) for column in columns])
    for row in map(_flat, found["rows"]):
        cells = [safe_cell(row[key]) for key in groups]
        writer.writerow([*cells, *("" if row[c] is None else row[c] for c in figures)])


def _print_table(found: dict[str, Any]) -> None:
    groups = found["group_by"]
    totals = _flat(found["totals"])
    figures = [name for name in totals if name not in _LEFT_OUT]
    rows = [[*(_cell(row[c]) for c in (*groups, *figures))] for row in map(_flat, found["rows"])]
    total = ["total", *[""] * (len(groups) - 1)] if groups else []
    if groups:
        rows.append([*total, *(_cell(totals[c]) for c in figures)])
    table([*groups, *figures], rows, right=figures)
    parts = dict(found["idle_breakdown"])
    overrun = parts.pop("overrun")
    breakdown = ", ".join(f"{name.replace('_', ' ')} ${usd}" for name, usd in parts.items())
    click.echo(f"{found['since'] or 'the beginning'} to {found['until']}, {found['tz']}")
    click.echo(f"machines     ${found['machine_cost_usd']}")
    click.echo(f"idle         ${found['idle_cost_usd']} ({breakdown})")
    click.echo(f"unattributed ${found['unattributed_cost_usd']}")
    click.echo(f"overrun      ${overrun}, of the charges: beyond what budgets held for them")
    savings = found["savings"]
    click.echo(f"avoided      ${savings['avoided_usd']}, net ${savings['net_avoided_usd']}")
    if savings["really_saved_usd"] is not None:
        click.echo(
            f"really saved ${savings['really_saved_usd']} "
            f"of a baseline of ${savings['baseline_cost_usd']}"
        )


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
