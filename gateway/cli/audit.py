"""`headgate audit`: who administrated what."""

from typing import Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import moment, run_in_transaction, table


@click.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--action", help="Only this one, such as keys.create.")
@click.option("--actor", help="Only this key's id, or cli:USER.")
@config_option
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    limit: int,
    action: str | None,
    actor: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Acts of administration, the newest first: done, refused and failed ones."""
    import msgspec

    from gateway.ledger.audit import list_acts

    found = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: list_acts(connection, limit=limit, action=action, actor=actor),
    )
    if as_json:
        shown: list[dict[str, Any]] = msgspec.to_builtins(found)
        print_json([{**act, "at": moment(act["at"])} for act in shown])
        return
    table(
        ["at", "actor", "action", "target", "outcome", "from"],
        [
            [moment(act.at) or "", act.actor, act.action, act.target, act.outcome, act.address]
            for act in found
        ],
    )
