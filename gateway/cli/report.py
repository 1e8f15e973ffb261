"""`headgate report`: out of the ledger."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import click

from gateway.cli.common import config_option, fail, settings_of
from gateway.cli.database import run_on_engine, table
from gateway.cli.report_batches import batches
from gateway.cli.report_books import accounts, bill, close, correct
from gateway.cli.report_cache import cache
from gateway.cli.report_experiment import experiment
from gateway.cli.report_export import export
from gateway.cli.report_insights import anomalies, forecast, hints
from gateway.cli.report_monthly import monthly
from gateway.cli.report_output import (
    bar,
    count,
    dollars,
    hand_out,
    output_options,
    set_amounts,
    share_of,
)
from gateway.cli.report_plot import MOST_BARS, check_plot, draw_bars
from gateway.cli.report_reconcile import reconcile
from gateway.ledger.csv_text import safe_cell
from gateway.ledger.report_query import CHARGE_KEYS, TIME_KEYS, called, label_of

_COUNTS = ("requests", "prompt_tokens", "completion_tokens", "errors")
_AMOUNTS = ("cost_usd", "idle_share_usd", "full_cost_usd", "saved_usd")
_SPARE = ("prompt_tokens", "completion_tokens", "saved_usd", "idle_share_usd", "hits", "share")
"""What goes first where the terminal is narrow; JSON and CSV have everything."""


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
    "--against",
    metavar="PRICE",
    help="What the requests would have cost at a price: a name (gpt-4o-mini, one of "
    "[reports.prices], a backend with prices) or IN/OUT in dollars per million tokens.",
)
@output_options
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
    against: str | None,
    format_: str,
    as_json: bool,
    plot: str | None,
    config: str | None,
) -> None:
    """What was spent, by whom, on what; what idle machines cost beside it."""
    from gateway.ledger.compare import compared_report
    from gateway.ledger.reports import costs_report

    check_plot(plot)
    settings = settings_of(ctx, config)
    asked: dict[str, Any] = {
        "group_by": group_by,
        "since": since,
        "until": until,
        "tz": tz,
        "filters": _filters(conditions),
        "idle_by": idle_by,
        "against": against,
    }

    async def read(engine: Any) -> dict[str, Any]:
        if compare is None:
            return await costs_report(engine, settings, **asked)
        return await compared_report(engine, settings, compare=compare, **asked)

    found = run_on_engine(settings, read)
    if plot is not None:
        _draw(found, plot)
    hand_out(
        found,
        as_json=as_json,
        format_=format_,
        rows=[{**_flat(row), "key_name": safe_cell(row.get("key_name"))} for row in found["rows"]],
        columns=[
            *found["group_by"],
            *_flat(found["totals"]),
            *(["key_name"] if "key" in found["group_by"] else []),
        ],
        texts=len(found["group_by"]),
        print_table=lambda: _print_all(found),
    )


def _print_all(found: dict[str, Any]) -> None:
    _print_table(found)
    _print_sums(found)


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


def _print_table(found: dict[str, Any]) -> None:
    """A row per group with a bar for its share of the whole cost, and the totals."""
    groups, whole = found["group_by"], _flat(found["totals"])
    lines = [*map(_flat, found["rows"]), whole] if groups else [whole]
    amounts = [*_AMOUNTS, *(["previous_cost_usd", "cost_change_usd"] if "compare" in found else [])]
    set_ = set_amounts([[line[name] for line in lines] for name in amounts])
    full = Decimal(whole["full_cost_usd"])
    cells = []
    for line, *usd in zip(lines, *set_, strict=True):
        counts = [count(line[name]) for name in _COUNTS]
        part = share_of(Decimal(line["full_cost_usd"]), full)
        names = ["-" if line.get(key) is None else str(called(line, key)) for key in groups]
        drawn = "" if line is whole else f" {bar(part)}"
        cells.append([*names, *counts, _hits(line), *usd, f"{part:6.1%}{drawn}"])
    columns = [*groups, *_COUNTS, "hits", *amounts, "share"]
    total = None
    if groups:
        total = ["total", *[""] * (len(groups) - 1), *cells.pop()[len(groups) :]]
    table(columns, cells, right=columns[len(groups) : -1], total=total, spare=_SPARE)
    if set(groups) & set(CHARGE_KEYS):
        click.echo("a request counts in each row in which work was charged for it, in all once")


def _hits(line: dict[str, Any]) -> str:
    hits = line["cache_hits_exact"] + line["cache_hits_semantic"]
    return f"{hits / line['requests']:.1%}" if line["requests"] else "-"


def _print_sums(found: dict[str, Any]) -> None:
    """What the machines cost beside the rows, and what was saved."""
    parts = dict(found["idle_breakdown"])
    overrun = parts.pop("overrun")
    breakdown = ", ".join(f"{name.replace('_', ' ')} ${usd}" for name, usd in parts.items())
    click.echo(f"{found['since'] or 'the beginning'} to {found['until']}, {found['tz']}")
    click.echo(f"machines     ${found['machine_cost_usd']}")
    click.echo(f"idle         ${found['idle_cost_usd']} ({breakdown})")
    click.echo(f"unattributed {dollars(found['unattributed_cost_usd'])}")
    click.echo(f"overrun      ${overrun}, of the charges: beyond what budgets held for them")
    for line in _saved(found["savings"]):
        click.echo(line)


def _saved(savings: dict[str, Any]) -> Iterator[str]:
    """Each way apart, with what it assumes."""
    yield f"avoided      ${savings['avoided_usd']}, net {dollars(savings['net_avoided_usd'])}"
    if savings["really_saved_usd"] is not None:
        yield (
            f"really saved {dollars(savings['really_saved_usd'])} "
            f"of a baseline of ${savings['baseline_cost_usd']}: "
            f"{savings['really_saved_hours']} machine-hours that did not run"
        )
    for name, words in (("against_price", "at a price"), ("against_largest", "all on one")):
        way = savings[name]
        if way is None:
            continue
        yield (
            f"{words:<12} ${way['would_cost_usd']} for all of it at {way['name']}, "
            f"${way['cost_usd']} here: {dollars(way['saved_usd'])} saved"
        )
        yield f"             assumed: {way['assumption']}"


def _draw(found: dict[str, Any], plot: str) -> None:
    """Cost and share of idle time by group, the dearest first, or in the order of time."""
    groups, all_ = found["group_by"], found["rows"]
    in_time = any(key in TIME_KEYS for key in groups)
    rows = all_[-MOST_BARS:] if in_time else all_[:MOST_BARS]
    names = [label_of(row, groups) for row in rows]
    parts = {"cost": "cost_usd", "idle time": "idle_share_usd"}
    series = {name: [float(row[key]) for row in rows] for name, key in parts.items()}
    title = f"Costs by {', '.join(groups)}" if groups else "Costs"
    if len(rows) < len(all_):
        title += f" ({'newest' if in_time else 'dearest'} {len(rows)} of {len(all_)})"
    draw_bars(plot, names, series, title=title, unit="US dollars")
    click.echo(f"{plot}: drawn", err=True)
