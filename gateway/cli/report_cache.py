"""`headgate report cache`: what each layer spared."""

from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, settings_of
from gateway.cli.database import run_on_engine, table
from gateway.cli.report_output import bar, count, dollars, hand_out, output_options, set_amounts
from gateway.cli.report_plot import MOST_BARS, check_plot, draw_bars
from gateway.ledger.report_query import label_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_LAYERS = ("exact", "semantic", "prefix")


@click.command()
@click.option("--group-by", default="team", show_default=True, help="As of `report costs`.")
@click.option("--since", metavar="T", help="RFC 3339 or a date; inclusive.")
@click.option("--until", metavar="T", help="RFC 3339 or a date; exclusive. Default: now.")
@click.option("--tz", default="UTC", show_default=True, help="Of dates, days and hours.")
@output_options
@config_option
@click.pass_context
def cache(
    ctx: click.Context,
    group_by: str,
    since: str | None,
    until: str | None,
    tz: str,
    format_: str,
    as_json: bool,
    plot: str | None,
    config: str | None,
) -> None:
    """Hits of the exact, the semantic and the prefix cache, and what they saved."""
    from gateway.ledger.cache_report import cache_report

    check_plot(plot)
    settings = settings_of(ctx, config)

    async def read(engine: "AsyncEngine") -> dict[str, Any]:
        return await cache_report(
            engine, settings, group_by=group_by, since=since, until=until, tz=tz
        )

    found = run_on_engine(settings, read)
    if plot is not None:
        _draw(found, plot)
    hand_out(
        found,
        as_json=as_json,
        format_=format_,
        rows=found["rows"],
        columns=[*found["group_by"], *found["totals"]],
        texts=len(found["group_by"]),
        print_table=lambda: _print_table(found),
    )


def _print_table(found: dict[str, Any]) -> None:
    keys, totals = found["group_by"], found["totals"]
    lines = [*found["rows"], totals] if keys else [totals]
    (saved,) = set_amounts([[line["saved_usd"] for line in lines]])
    cells = [
        [*(str(line.get(key) or "-") for key in keys), count(line["requests"]), *_rates(line), usd]
        for line, usd in zip(lines, saved, strict=True)
    ]
    columns = [*keys, "requests", *_LAYERS, "saved_usd"]
    total = None
    if keys:
        total = ["total", *[""] * (len(keys) - 1), *cells.pop()[len(keys) :]]
    table(columns, cells, right=("requests", "saved_usd"), total=total, spare=("requests",))
    spent = ", ".join(f"{kind} ${usd}" for kind, usd in found["spent_on_saving_usd"].items())
    beside = f" (spent on it: {spent})" if spent else ""
    click.echo(f"{found['since'] or 'the beginning'} to {found['until']}, {found['tz']}")
    click.echo(f"avoided ${found['avoided_usd']}, net {dollars(found['net_avoided_usd'])}{beside}")
    click.echo("exact, semantic: of the requests; prefix: of the prompt tokens")


def _rates(line: dict[str, Any]) -> list[str]:
    rates = [line[f"{layer}_rate"] for layer in _LAYERS]
    return ["-" if rate is None else f"{rate:6.1%} {bar(rate)}" for rate in rates]


def _draw(found: dict[str, Any], plot: str) -> None:
    keys, rows = found["group_by"], found["rows"][:MOST_BARS]
    names = [label_of(row, keys) for row in rows]
    series = {layer: [100 * (row[f"{layer}_rate"] or 0.0) for row in rows] for layer in _LAYERS}
    title = f"Cache hits by {', '.join(keys)}" if keys else "Cache hits"
    draw_bars(plot, names, series, title=title, unit="per cent", stacked=False)
    click.echo(f"{plot}: drawn", err=True)
