"""`headgate report accounts|correct|bill|close|reconcile`: the books and the end of the month."""

import time
from typing import Any

import click

from gateway.cli.common import config_option, fail, json_option, print_json, settings_of
from gateway.cli.database import run_on_engine, table
from gateway.cli.report_output import dollars


@click.command()
@click.option("--since", metavar="T", help="RFC 3339 or a date; inclusive.")
@click.option("--until", metavar="T", help="RFC 3339 or a date; exclusive. Default: now.")
@config_option
@json_option
@click.pass_context
def accounts(
    ctx: click.Context, since: str | None, until: str | None, config: str | None, as_json: bool
) -> None:
    """Double entry: what teams' keys owe, what machines and upstreams are owed; zero together."""
    from datetime import UTC, datetime

    from gateway.ledger.accounts import balances
    from gateway.ledger.money import usd_text
    from gateway.ledger.report_lines import snapshot
    from gateway.ledger.report_query import parse_query

    async def read(engine: Any) -> Any:
        query = parse_query(since=since, until=until, now=datetime.now(UTC))
        async with snapshot(engine) as connection:
            return await balances(connection, query)

    found = run_on_engine(settings_of(ctx, config), read)
    shown = [
        {
            "account": line.account,
            "debit_usd": usd_text(line.debit_nano_usd),
            "credit_usd": usd_text(line.credit_nano_usd),
            "balance_usd": usd_text(line.balance_nano_usd),
        }
        for line in found
    ]
    balance = usd_text(sum(line.balance_nano_usd for line in found))
    if as_json:
        print_json({"accounts": shown, "balance_usd": balance})
        return
    columns = ["account", "debit_usd", "credit_usd", "balance_usd"]
    table(columns, [[line[name] for name in columns] for line in shown], right=columns[1:])
    click.echo(f"together ${balance}")


@click.command()
@click.argument("request_id")
@click.option("--seq", type=int, default=0, show_default=True, help="Which of its charges.")
@click.option("--cost-usd", metavar="USD", help="What it should have cost. Default: nothing.")
@config_option
@json_option
@click.pass_context
def correct(
    ctx: click.Context,
    request_id: str,
    seq: int,
    cost_usd: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Take a charge back by a reversal, and book it again at --cost-usd."""
    from gateway.ledger import corrections
    from gateway.ledger.audit import command_line_actor
    from gateway.ledger.money import parse_usd, usd_text

    settings = settings_of(ctx, config)

    async def write(engine: Any) -> Any:
        return await corrections.correct(
            engine,
            request_id,
            seq,
            cost_nano_usd=None if cost_usd is None else parse_usd(cost_usd),
            now=time.time(),
            chained=settings.database.audit_chain,
            by=command_line_actor(),
        )

    booked = run_on_engine(settings, write)
    shown = [
        {
            "seq": charge.seq,
            "kind": charge.kind,
            "cost_usd": usd_text(charge.cost_nano_usd),
            "corrects": charge.reverses_seq,
        }
        for charge in booked
    ]
    if as_json:
        print_json({"request_id": request_id, "booked": shown})
        return
    for line in shown:
        click.echo(f"{request_id} #{line['seq']} {line['kind']} {dollars(line['cost_usd'])}")


@click.command()
@click.argument("month")
@config_option
@json_option
@click.pass_context
def bill(ctx: click.Context, month: str, config: str | None, as_json: bool) -> None:
    """What a month (YYYY-MM, UTC) costs, line by line: teams, idle machines, invoices' rest."""
    from gateway.ledger import month_end

    settings = settings_of(ctx, config)
    found = run_on_engine(settings, lambda engine: month_end.bill(engine, settings, month))
    _print_bill(found.shown(), as_json)


@click.command()
@click.argument("month")
@config_option
@json_option
@click.pass_context
def close(ctx: click.Context, month: str, config: str | None, as_json: bool) -> None:
    """Freeze a month (YYYY-MM, UTC); what comes later posts to the open one and says so."""
    from gateway.ledger import month_end
    from gateway.ledger.audit import command_line_actor

    settings, by = settings_of(ctx, config), command_line_actor()
    found = run_on_engine(
        settings, lambda engine: month_end.close(engine, settings, month, now=time.time(), by=by)
    )
    _print_bill(found.shown(), as_json)


def _print_bill(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(shown)
        return
    columns = ["kind", "name", "usd", "note"]
    rows = [[line[name] for name in columns] for line in shown["lines"]]
    table(columns, [*rows, ["total", "", shown["total_usd"], ""]], right=("usd",))
    click.echo(f"{shown['month']} is {'open' if shown['closed_at'] is None else 'closed'}")


def print_invoice(
    ctx: click.Context,
    *,
    month: str | None,
    invoice: str,
    discount: str,
    payee: str,
    note: str,
    config: str | None,
    as_json: bool,
) -> None:
    """`report reconcile --invoice`: post what an invoice says beyond the charges."""
    from gateway.ledger import month_end
    from gateway.ledger.audit import command_line_actor
    from gateway.ledger.money import parse_usd

    if month is None:
        fail("--invoice needs --month, such as --month 2026-11", code=2)
    settings = settings_of(ctx, config)

    async def post(engine: Any) -> Any:
        return await month_end.reconcile_invoice(
            engine,
            settings,
            month,
            invoice_nano_usd=parse_usd(invoice),
            discount_nano_usd=parse_usd(discount),
            payee=payee,
            note=note,
            now=time.time(),
            by=command_line_actor(),
        )

    found = run_on_engine(settings, post)
    if as_json:
        print_json(found)
        return
    click.echo(f"the ledger expects {dollars(found['expected_usd'])}")
    click.echo(f"discount           {dollars(found['discount_usd'])}")
    click.echo(f"difference         {dollars(found['difference_usd'])}")
    click.echo(f"invoice            {dollars(found['invoice_usd'])}")
    click.echo(f"{found['posted']} new lines in {found['posted_to']}")
