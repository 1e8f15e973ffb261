"""`headgate report reconcile`: do the hours add up, and does the ledger agree with the invoice?"""

from decimal import Decimal
from typing import Any

import click

from gateway.cli.common import config_option, fail, settings_of
from gateway.cli.database import run_on_engine, table
from gateway.cli.report_books import print_invoice
from gateway.cli.report_output import bar, dollars, hand_out, output_options, set_amounts, share_of
from gateway.cli.report_plot import MOST_BARS, check_plot, draw_bars

_NAMES = ("hour", "machine")
_AMOUNTS = ("cost_usd", "charged_usd", "idle_usd", "unattributed_usd")


@click.command()
@click.option("--since", metavar="T", help="RFC 3339 or a date; inclusive.")
@click.option(
    "--until", metavar="T", help="RFC 3339 or a date; exclusive. Default: the last full hour."
)
@click.option("--tz", default="UTC", show_default=True, help="Of dates and hours.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Share of an hour's machine cost that may be unattributed.",
)
@click.option("--invoice", metavar="USD", help="Post what this invoice says beyond the charges.")
@click.option("--month", metavar="YYYY-MM", help="Of the invoice; UTC.")
@click.option("--discount", default="0", metavar="USD", help="What the invoice takes off.")
@click.option(
    "--payee", default="all", show_default=True, help="Whose invoice: upstream:BACKEND, or all."
)
@click.option("--note", default="", help="Stands on the posted lines: the invoice's number, say.")
@output_options
@config_option
@click.pass_context
def reconcile(
    ctx: click.Context,
    since: str | None,
    until: str | None,
    tz: str,
    tolerance: float,
    invoice: str | None,
    month: str | None,
    discount: str,
    payee: str,
    note: str,
    format_: str,
    as_json: bool,
    plot: str | None,
    config: str | None,
) -> None:
    """Name the hours in which machine time, idle time and charges do not add up; then exit 1.

    With --invoice: post its discount and difference as lines of their own.
    """
    if invoice is not None:
        print_invoice(
            ctx,
            month=month,
            invoice=invoice,
            discount=discount,
            payee=payee,
            note=note,
            config=config,
            as_json=as_json or format_ == "json",
        )
        return
    if month is not None:
        fail("--month is an invoice's; give --invoice USD, or --since and --until", code=2)
    check_plot(plot)
    found = _hours(ctx, config, since=since, until=until, tz=tz, tolerance=str(tolerance))
    if plot is not None:
        _draw(found, plot)
    hand_out(
        found,
        as_json=as_json,
        format_=format_,
        rows=found["hours"],
        columns=(*_NAMES, *_AMOUNTS, "ok"),
        texts=len(_NAMES),
        print_table=lambda: _print_hours(found),
    )
    ctx.exit(0 if found["ok"] else 1)


def _hours(ctx: click.Context, config: str | None, *, tolerance: str, **period: Any) -> Any:
    from gateway.ledger.reconcile import reconcile_hours

    settings = settings_of(ctx, config)
    share = Decimal(tolerance)
    return run_on_engine(
        settings, lambda engine: reconcile_hours(engine, settings, tolerance=share, **period)
    )


def _print_hours(found: dict[str, Any]) -> None:
    hours = found["hours"]
    if not hours:
        _print_changed(found)
        click.echo(f"no machine ran in an hour that ended before {found['until']}")
        return
    sums = {name: sum((Decimal(row[name]) for row in hours), Decimal(0)) for name in _AMOUNTS}
    lines = [*hours, {name: format(value, "f") for name, value in sums.items()}]
    set_ = set_amounts([[line[name] for line in lines] for name in _AMOUNTS])
    cells = []
    for line, *usd in zip(lines, *set_, strict=True):
        off = share_of(abs(Decimal(line["unattributed_usd"])), abs(Decimal(line["cost_usd"])))
        if not Decimal(line["cost_usd"]) and Decimal(line["unattributed_usd"]):
            off = 1.0
        mark = "" if line.get("ok", True) else "!"
        names = [line.get(name, "") for name in _NAMES]
        cells.append([*names, *usd, f"{off:6.1%} {bar(off)}", mark])
    total = ["total", *cells.pop()[1:]]
    columns = [*_NAMES, *_AMOUNTS, "off by", ""]
    table(columns, cells, right=_AMOUNTS, total=total, spare=("idle_usd", "charged_usd"))
    for row in hours:
        if not row["ok"]:
            engines = "; ".join(
                f"{e['backend']} measured ${e['measured_usd']}, charged ${e['charged_usd']}"
                for e in row["engines"]
            )
            left = dollars(row["unattributed_usd"])
            click.echo(f"{row['hour']} {row['machine']}: {left} unattributed")
            click.echo(f"  {engines or 'no engine reported and nothing was charged'}")
    _print_changed(found)
    failed = sum(not row["ok"] for row in hours)
    click.echo(f"{len(hours)} machine-hours, {failed} of them off by more than the tolerance")


def _print_changed(found: dict[str, Any]) -> None:
    """Charges that are not those that were booked."""
    for row in found["changed"]:
        where = f"{row['backend']} on {row['machine'] or 'its upstream'}"
        click.echo(
            f"{row['hour']} {where}: the charges are {dollars(row['charged_usd'])}, "
            f"{dollars(row['summed_usd'])} when they were booked; "
            "some are gone or changed: `headgate db check` says more"
        )


def _draw(found: dict[str, Any], plot: str) -> None:
    """The newest hours: what each machine's cost consists of."""
    hours = found["hours"][-MOST_BARS:]
    names = [f"{row['hour'][5:16].replace('T', ' ')} {row['machine']}" for row in hours]
    parts = {"charged": "charged_usd", "idle": "idle_usd", "unattributed": "unattributed_usd"}
    series = {name: [float(row[key]) for row in hours] for name, key in parts.items()}
    draw_bars(plot, names, series, title="Machine-hours", unit="US dollars")
    click.echo(f"{plot}: drawn", err=True)
