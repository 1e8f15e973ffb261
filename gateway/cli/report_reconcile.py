"""`headgate report reconcile`: does the ledger agree with what is to be paid?"""

import click

from gateway.cli.common import config_option, fail, json_option
from gateway.cli.report_books import print_invoice


@click.command()
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
    invoice: str | None,
    month: str | None,
    discount: str,
    payee: str,
    note: str,
    config: str | None,
    as_json: bool,
) -> None:
    """Post an invoice's discount and difference as lines of their own."""
    if invoice is None:
        fail("reconcile needs --invoice USD --month YYYY-MM", code=2)
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
