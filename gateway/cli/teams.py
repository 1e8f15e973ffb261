"""`headgate teams`: who pays."""

import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import moment, run_in_transaction, table
from gateway.cli.limit_options import limit_options, limits_of, limits_text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


@click.group()
def teams() -> None:
    """Create, list and limit teams."""


@teams.command()
@click.argument("name")
@config_option
@json_option
@click.pass_context
def create(ctx: click.Context, name: str, config: str | None, as_json: bool) -> None:
    """Make a team; one that is there already stays as it is."""
    from gateway.ledger.key_store import create_team

    new = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: create_team(connection, name, now=time.time()),
        act=("teams.create", name),
    )
    if as_json:
        print_json({"name": name, "created": new})
    else:
        click.echo(f"Team {name} {'is made' if new else 'was there already'}.")


@teams.command()
@click.argument("name")
@click.option("--weight", type=int, help="Of its share when a backend is saturated; default 1.")
@limit_options
@config_option
@json_option
@click.pass_context
def limit(
    ctx: click.Context,
    /,
    name: str,
    weight: int | None,
    config: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Set a team's rate limits (those not given are gone) and its weight."""
    from gateway.ledger.key_store import change_team
    from gateway.limits.model import shown

    async def work(connection: "AsyncConnection") -> None:
        await change_team(connection, name, limits=limits_of(limits), weight=weight)

    wanted = limits_of(limits)
    run_in_transaction(
        settings_of(ctx, config),
        work,
        act=("teams.change", name),
        details=lambda _: {"limits": shown(wanted), "weight": weight},
    )
    if as_json:
        print_json({"name": name, "limits": shown(wanted), "weight": weight})
    else:
        click.echo(f"Team {name}: {limits_text(wanted) or 'no rate limits'}.")


@teams.command("list")
@config_option
@json_option
@click.pass_context
def list_(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """All teams, with the number of keys that are not revoked."""
    from gateway.ledger.key_store import list_teams
    from gateway.limits.model import shown

    found = run_in_transaction(settings_of(ctx, config), list_teams)
    if as_json:
        print_json(
            [
                {
                    **team,
                    "created_at": moment(team["created_at"]),
                    "limits": shown(team["limits"]),
                }
                for team in found
            ]
        )
        return
    table(
        ["team", "created", "keys", "weight", "limits"],
        [
            [
                team["name"],
                moment(team["created_at"]) or "",
                str(team["keys"]),
                str(team["weight"]),
                limits_text(team["limits"]),
            ]
            for team in found
        ],
        right={"keys", "weight"},
    )
