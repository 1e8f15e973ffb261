"""`headgate keys`: who may ask."""

import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import moment, run_in_transaction, table

if TYPE_CHECKING:
    from gateway.ledger.keys import Key


@click.group()
def keys() -> None:
    """Create, list, revoke and rotate API keys.

    A running gateway sees changes at once, on other hosts within two seconds.
    """


@keys.command()
@click.option("--team", required=True, help="Whose requests these are; made if it is new.")
@click.option("--name", default="", help="To recognise it in lists.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["inference", "reports", "admin"]),
    help="What it may do; can be given again. Default: inference.",
)
@click.option("--expires-in-days", type=click.FloatRange(min=0, min_open=True))
@config_option
@json_option
@click.pass_context
def create(
    ctx: click.Context,
    team: str,
    name: str,
    scopes: tuple[str, ...],
    expires_in_days: float | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Make a key. It is shown once, now."""
    from gateway.ledger.keys import DEFAULT_SCOPES, create_key

    now = time.time()
    expires_at = None if expires_in_days is None else now + expires_in_days * 86_400
    key, secret = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: create_key(
            connection,
            team=team,
            name=name,
            scopes=scopes or DEFAULT_SCOPES,
            expires_at=expires_at,
            now=now,
        ),
    )
    _show_secret(key, secret, as_json)


@keys.command("list")
@click.option("--team", help="Only this team's.")
@config_option
@json_option
@click.pass_context
def list_(ctx: click.Context, team: str | None, config: str | None, as_json: bool) -> None:
    """All keys: never the secret, only its first characters."""
    from gateway.ledger.keys import list_keys

    found = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: list_keys(connection, team=team),
        changes=False,
    )
    if as_json:
        print_json([_json(key) for key in found])
        return
    table(
        ["id", "key", "team", "name", "scopes", "created", "state"],
        [
            [
                key.id,
                f"{key.prefix}…",
                key.team,
                key.name,
                ", ".join(key.scopes),
                moment(key.created_at) or "",
                _state(key, time.time()),
            ]
            for key in found
        ],
    )


@keys.command()
@click.argument("key_id")
@config_option
@json_option
@click.pass_context
def revoke(ctx: click.Context, key_id: str, config: str | None, as_json: bool) -> None:
    """Let a key in no more."""
    from gateway.ledger.keys import revoke_key

    key = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: revoke_key(connection, key_id, now=time.time()),
    )
    if as_json:
        print_json(_json(key))
    else:
        click.echo(f"{key.id} of team {key.team} is revoked since {moment(key.revoked_at)}.")


@keys.command()
@click.argument("key_id")
@click.option(
    "--overlap-s",
    type=click.FloatRange(min=0),
    default=0.0,
    help="How long the old secret still works.",
)
@config_option
@json_option
@click.pass_context
def rotate(
    ctx: click.Context, key_id: str, overlap_s: float, config: str | None, as_json: bool
) -> None:
    """Give a key a new secret; id, team, budgets and history stay."""
    from gateway.ledger.keys import rotate_key

    key, secret = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: rotate_key(connection, key_id, overlap_s=overlap_s, now=time.time()),
    )
    _show_secret(key, secret, as_json)


def _show_secret(key: "Key", secret: str, as_json: bool) -> None:
    if as_json:
        print_json({"id": key.id, "key": secret})
        return
    click.echo(f"{secret}\n\nThis is the only time it is shown. Its id is {key.id}.")


def _state(key: "Key", now: float) -> str:
    if key.revoked_at is not None:
        return f"revoked {moment(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'expired' if key.expires_at <= now else 'valid until'} {moment(key.expires_at)}"


def _json(key: "Key") -> dict[str, Any]:
    return {
        "id": key.id,
        "prefix": key.prefix,
        "team": key.team,
        "name": key.name,
        "scopes": list(key.scopes),
        "created_at": moment(key.created_at),
        "expires_at": moment(key.expires_at),
        "revoked_at": moment(key.revoked_at),
    }
