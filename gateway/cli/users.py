"""`headgate users`: whom keys belong to."""

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
def users() -> None:
    """Create, list and remove users.

    Requests with a key that belongs to a user are that user's, whatever the body says.
    """


@users.command()
@click.argument("name")
@click.option("--team", required=True, help="Made if it is new.")
@limit_options
@config_option
@url_option
@json_option
@click.pass_context
def create(
    ctx: click.Context,
    /,
    name: str,
    team: str,
    config: str | None,
    url: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Make a user, or set the rate limits of one that is there."""
    settings = settings_of(ctx, config)
    body: dict[str, Any] = {"name": name, "team": team, "limits": limits_given(limits)}

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import create_user
        from gateway.limits.model import check_limits

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            wanted = check_limits(body["limits"])
            await create_user(connection, name, team=team, limits=wanted, now=time.time())
            return {"name": name, "team": team}

        return run_in_transaction(
            settings, work, act=("users.create", name), details=lambda _: body
        )

    made = administrate(settings, "POST", "/admin/users", directly, json=body, url=url)
    if as_json:
        print_json(made)
    else:
        click.echo(f"User {name} of team {team}; `headgate keys create --user` makes a key.")


@users.command("list")
@click.option("--team", help="Only this team's.")
@config_option
@url_option
@json_option
@click.pass_context
def list_(
    ctx: click.Context, team: str | None, config: str | None, url: str | None, as_json: bool
) -> None:
    """All users, removed ones included."""
    settings = settings_of(ctx, config)

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import list_users
        from gateway.limits.model import shown

        found = run_in_transaction(settings, lambda connection: list_users(connection, team=team))
        return {"users": [{**user, "limits": shown(user["limits"])} for user in found]}

    params = {} if team is None else {"team": team}
    found = administrate(settings, "GET", "/admin/users", directly, params=params, url=url)["users"]
    if as_json:
        moments = ("created_at", "removed_at")
        print_json([{**user, **{name: moment(user[name]) for name in moments}} for user in found])
        return
    table(
        ["user", "team", "limits", "created", "removed"],
        [
            [
                user["name"],
                user["team"],
                limits_text(user["limits"]),
                moment(user["created_at"]) or "",
                moment(user["removed_at"]) or "",
            ]
            for user in found
        ],
    )


@users.command()
@click.argument("name")
@config_option
@url_option
@json_option
@click.pass_context
def remove(
    ctx: click.Context, name: str, config: str | None, url: str | None, as_json: bool
) -> None:
    """Let a user in no more: all his keys are revoked; the ledger's rows stay."""
    settings = settings_of(ctx, config)

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import remove_user

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            revoked = await remove_user(connection, name, now=time.time())
            return {"name": name, "removed": True, "keys_revoked": revoked}

        return run_in_transaction(settings, work, act=("users.remove", name))

    path = f"/admin/users/{quote(name, safe='')}"
    gone = administrate(settings, "DELETE", path, directly, url=url)
    if as_json:
        print_json(gone)
    else:
        click.echo(f"User {name} is removed; {gone['keys_revoked']} keys are revoked.")
