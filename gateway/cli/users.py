"""`headgate users`: whom keys belong to."""

import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import moment, run_in_transaction, table
from gateway.cli.limit_options import limit_options, limits_of, limits_text

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
@json_option
@click.pass_context
def create(
    ctx: click.Context, /, name: str, team: str, config: str | None, as_json: bool, **limits: Any
) -> None:
    """Make a user, or set the rate limits of one that is there."""
    from gateway.ledger.key_store import create_user
    from gateway.limits.model import shown

    async def work(connection: "AsyncConnection") -> None:
        await create_user(connection, name, team=team, limits=limits_of(limits), now=time.time())

    run_in_transaction(
        settings_of(ctx, config),
        work,
        act=("users.create", name),
        details=lambda _: {"team": team, "limits": shown(limits_of(limits))},
    )
    if as_json:
        print_json({"name": name, "team": team})
    else:
        click.echo(f"User {name} of team {team}; `headgate keys create --user` makes a key.")


@users.command("list")
@click.option("--team", help="Only this team's.")
@config_option
@json_option
@click.pass_context
def list_(ctx: click.Context, team: str | None, config: str | None, as_json: bool) -> None:
    """All users, removed ones included."""
    from gateway.ledger.key_store import list_users
    from gateway.limits.model import shown

    found = run_in_transaction(
        settings_of(ctx, config), lambda connection: list_users(connection, team=team)
    )
    if as_json:
        print_json(
            [
                {
                    **user,
                    "limits": shown(user["limits"]),
                    "created_at": moment(user["created_at"]),
                    "removed_at": moment(user["removed_at"]),
                }
                for user in found
            ]
        )
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
@json_option
@click.pass_context
def remove(ctx: click.Context, name: str, config: str | None, as_json: bool) -> None:
    """Let a user in no more: all his keys are revoked; the ledger's rows stay."""
    from gateway.ledger.key_store import remove_user

    revoked = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: remove_user(connection, name, now=time.time()),
        act=("users.remove", name),
    )
    if as_json:
        print_json({"name": name, "removed": True, "keys_revoked": revoked})
    else:
        click.echo(f"User {name} is removed; {revoked} keys are revoked.")
