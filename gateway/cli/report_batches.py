"""`headgate report batches`: what tokens cost by how many requests were served at once."""

from datetime import UTC, datetime
from typing import Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import run_on_engine, table


@click.command()
@click.option(
    "--group-by",
    default="backend",
    show_default=True,
    metavar="KEYS",
    help="Comma-separated: backend, model, machine, machine_type.",
)
@click.option("--since", metavar="T", help="RFC 3339 or a date; inclusive.")
@click.option("--until", metavar="T", help="RFC 3339 or a date; exclusive. Default: now.")
@click.option("--tz", default="UTC", show_default=True, help="Of dates.")
@click.option(
    "--idle-by",
    default="charges",
    show_default=True,
    help="What shares out the machines' idle cost: charges, tokens, requests or groups.",
)
@config_option
@json_option
@click.pass_context
def batches(
    ctx: click.Context,
    group_by: str,
    since: str | None,
    until: str | None,
    tz: str,
    idle_by: str,
    config: str | None,
    as_json: bool,
) -> None:
    """Dollars per million tokens by batch level: the mean number of requests served at once.

    As charged (marginal), and with a share of what the machines cost beside it (full).
    """
    from gateway.ledger.batch_levels import batch_report
    from gateway.ledger.report_lines import snapshot
    from gateway.ledger.report_query import parse_query

    keys = [key.strip() for key in group_by.split(",") if key.strip()]

    settings = settings_of(ctx, config)

    async def read(engine: Any) -> list[dict[str, Any]]:
        query = parse_query(since=since, until=until, tz=tz, idle_by=idle_by, now=datetime.now(UTC))
        async with snapshot(engine) as connection:
            return await batch_report(connection, settings, query, keys)

    rows = run_on_engine(settings, read)
    if as_json:
        print_json({"group_by": keys, "rows": rows})
        return
    columns = [*keys, "batch", "charges", "prompt_tokens", "completion_tokens"]
    columns += ["cost_usd", "full_cost_usd"]
    columns += ["usd_per_million_tokens", "full_usd_per_million_tokens"]
    cells = [["" if row[name] is None else str(row[name]) for name in columns] for row in rows]
    table(columns, cells, right=columns[len(keys) :])
