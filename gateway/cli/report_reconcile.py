"""`headgate report reconcile`: do the hours add up, and does the ledger agree with the invoice?"""

from decimal import Decimal
from typing import Any

import click

from gateway.cli.common import config_option, fail, json_option, print_json, settings_of
from gateway.cli.database import run_on_engine, table
from gateway.cli.report_books import print_invoice

_COLUMNS = ("hour", "machine", "cost_usd", "charged_usd", "idle_usd", "unattributed_usd")


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
@config_option
@json_option
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
    config: str | None,
    as_json: bool,
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
            as_json=as_json,
        )
        return
    if month is not None:
        fail("--month is an invoice's; give --invoice USD, or --since and --until", code=2)
    found = _hours(ctx, config, since=since, until=until, tz=tz, tolerance=str(tolerance))
    if as_json:
        print_json(found)
    else:
        _print_hours(found)
    ctx.exit(0 if found["ok"] else 1)


def _hours(ctx: click.Context, config: str | None, *, tolerance: str, **period: Any) -> Any:
    from gateway.ledger.reconcile import reconcile_hours

    settings = settings_of(ctx, config)
    share = Decimal(tolerance)
    return run_on_engine(
        settings, lambda engine: reconcile_hours(engine, settings, tolerance=share, **period)
    )


def _print_hours(found: dict[str, Any]) -> None:
    rows = [[*(row[name] for name in _COLUMNS), "" if row["ok"] else "!"] for row in found["hours"]]
    if not rows:
        click.echo(f"no machine ran in an hour that ended before {found['until']}")
        return
    table([*_COLUMNS, ""], rows, right=_COLUMNS[2:])
    for row in found["hours"]:
        if not row["ok"]:
            engines = "; ".join(
                f"{e['backend']} measured ${e['measured_usd']}, charged ${e['charged_usd']}"
                for e in row["engines"]
            )
            click.echo(f"{row['hour']} {row['machine']}: ${row['unattributed_usd']} unattributed")
            click.echo(f"  {engines or 'no engine reported and nothing was charged'}")
