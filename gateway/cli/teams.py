"""`headgate teams`: who pays."""

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from gateway.cli.administration import administrate
from gateway.cli.common import config_option, json_option, print_json, settings_of, url_option
from gateway.cli.database import moment, run_in_transaction, table
from gateway.cli.limit_options import limit_options, limits_given, limits_text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


@click.group()
def teams() -> None:
    """Create, list and limit teams."""


@teams.command()
@click.argument("name")
@config_option
@url_option
@json_option
@click.pass_context
def create(
    ctx: click.Context, name: str, config: str | None, url: str | None, as_json: bool
) -> None:
    """Make a team; one that is there already stays as it is."""
    settings = settings_of(ctx, config)

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import create_team

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            return {"name": name, "created": await create_team(connection, name, now=time.time())}

        return run_in_transaction(settings, work, act=("teams.create", name))

    made = administrate(settings, "POST", "/admin/teams", directly, json={"name": name}, url=url)
    if as_json:
        print_json(made)
    else:
        click.echo(f"Team {name} {'is made' if made['created'] else 'was there already'}.")


@teams.command()
@click.argument("name")
@click.option("--weight", type=int, help="Of its share when a backend is saturated; default 1.")
@limit_options
@config_option
@url_option
@json_option
@click.pass_context
def limit(
    ctx: click.Context,
    /,
    name: str,
    weight: int | None,
    config: str | None,
    url: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Set a team's rate limits (those not given are gone) and its weight."""
    settings, wanted = settings_of(ctx, config), limits_given(limits)

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import change_team
        from gateway.limits.model import check_limits

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            await change_team(connection, name, limits=check_limits(wanted), weight=weight)
            return {"name": name, "limits": wanted, "weight": weight}

        return run_in_transaction(
            settings,
            work,
            act=("teams.change", name),
            details=lambda _: {"limits": wanted, "weight": weight},
        )

    path = f"/admin/teams/{quote(name, safe='')}"
    body = {"limits": wanted, "weight": weight}
    team = administrate(settings, "PATCH", path, directly, json=body, url=url)
    if as_json:
        print_json(team)
    else:
        click.echo(f"Team {name}: {limits_text(team['limits']) or 'no rate limits'}.")


@teams.command("list")
@config_option
@url_option
@json_option
@click.pass_context
def list_(ctx: click.Context, config: str | None, url: str | None, as_json: bool) -> None:
    """All teams, with the number of keys that are not revoked."""
    settings = settings_of(ctx, config)

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import list_teams
        from gateway.limits.model import shown

        found = run_in_transaction(settings, list_teams)
        return {"teams": [{**team, "limits": shown(team["limits"])} for team in found]}

    found = administrate(settings, "GET", "/admin/teams", directly, url=url)["teams"]
    if as_json:
        print_json([{**team, "created_at": moment(team["created_at"])} for team in found])
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
