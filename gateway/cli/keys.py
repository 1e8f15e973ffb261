"""`headgate keys`: who may ask."""

import time
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import config_option, json_option, print_json, settings_of
from gateway.cli.database import moment, run_in_transaction, table
from gateway.cli.limit_options import limit_options, limits_of, limits_text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from gateway.ledger.key_store import Key


@click.group()
def keys() -> None:
    """Create, list, limit, revoke and rotate API keys.

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
@click.option(
    "--role",
    type=click.Choice(["owner", "operator", "auditor", "team"]),
    help="What the scope admin means; default: owner, everything.",
)
@click.option("--user", help="Whom it belongs to; see `headgate users`.")
@click.option("--expires-in-days", type=click.FloatRange(min=0, min_open=True))
@click.option("--endpoint", "endpoints", multiple=True, help="Only this one: chat/completions, …")
@click.option("--model", "models", multiple=True, help="Only this backend, tier or alias.")
@click.option("--policy", "policies", multiple=True, help="May ask for this policy only.")
@click.option("--network", "networks", multiple=True, help="Only from there, as 10.0.0.0/8.")
@limit_options
@config_option
@json_option
@click.pass_context
def create(
    ctx: click.Context,
    /,
    team: str,
    name: str,
    scopes: tuple[str, ...],
    role: str | None,
    user: str | None,
    expires_in_days: float | None,
    endpoints: tuple[str, ...],
    models: tuple[str, ...],
    policies: tuple[str, ...],
    networks: tuple[str, ...],
    config: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Make a key. It is shown once, now. Options that restrict it can be given again."""
    from gateway.ledger.access import Only
    from gateway.ledger.key_store import DEFAULT_SCOPES, NewKey, check_only, create_key

    now = time.time()

    async def work(connection: "AsyncConnection") -> "tuple[Key, str]":
        only = Only(
            endpoints=endpoints or None,
            models=models or None,
            policies=policies or None,
            networks=networks or None,
        )
        wanted = NewKey(
            team=team,
            name=name,
            scopes=scopes or DEFAULT_SCOPES,
            role=role,
            user=user,
            expires_at=None if expires_in_days is None else now + expires_in_days * 86_400,
            only=check_only(only),
            limits=limits_of(limits),
        )
        return await create_key(connection, wanted, now=now)

    key, secret = run_in_transaction(
        settings_of(ctx, config),
        work,
        act=("keys.create", team),
        details=lambda made: _told(made[0], "id", "name", "scopes", "role", "user", "expires_at"),
    )
    _show_secret(key, secret, as_json)


@keys.command("list")
@click.option("--team", help="Only this team's.")
@config_option
@json_option
@click.pass_context
def list_(ctx: click.Context, team: str | None, config: str | None, as_json: bool) -> None:
    """All keys: never the secret, only its first characters."""
    from gateway.ledger.key_store import list_keys

    found = run_in_transaction(
        settings_of(ctx, config), lambda connection: list_keys(connection, team=team)
    )
    if as_json:
        print_json([_json(key) for key in found])
        return
    table(
        ["id", "key", "team", "user", "name", "scopes", "limits", "created", "state"],
        [
            [
                key.id,
                f"{key.prefix}…",
                key.team,
                key.user or "",
                key.name,
                ", ".join(key.scopes) + (f" ({key.role})" if key.role else ""),
                limits_text(key.limits),
                moment(key.created_at) or "",
                _state(key, time.time()),
            ]
            for key in found
        ],
    )


@keys.command()
@click.argument("key_id")
@limit_options
@config_option
@json_option
@click.pass_context
def limit(
    ctx: click.Context, /, key_id: str, config: str | None, as_json: bool, **limits: Any
) -> None:
    """Set a key's rate limits; those not given are gone."""
    from gateway.ledger.key_store import limit_key

    async def work(connection: "AsyncConnection") -> "Key":
        return await limit_key(connection, key_id, limits_of(limits))

    key = run_in_transaction(
        settings_of(ctx, config),
        work,
        act=("keys.limit", key_id),
        details=lambda key: _told(key, "limits"),
    )
    if as_json:
        print_json(_json(key))
    else:
        click.echo(f"{key.id}: {limits_text(key.limits) or 'no rate limits'}.")


@keys.command()
@click.argument("key_id")
@config_option
@json_option
@click.pass_context
def revoke(ctx: click.Context, key_id: str, config: str | None, as_json: bool) -> None:
    """Let a key in no more."""
    from gateway.ledger.key_store import revoke_key

    key = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: revoke_key(connection, key_id, now=time.time()),
        act=("keys.revoke", key_id),
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
    from gateway.ledger.key_store import rotate_key

    key, secret = run_in_transaction(
        settings_of(ctx, config),
        lambda connection: rotate_key(connection, key_id, overlap_s=overlap_s, now=time.time()),
        act=("keys.rotate", key_id),
        details=lambda _: {"overlap_s": overlap_s},
    )
    _show_secret(key, secret, as_json)


def _show_secret(key: "Key", secret: str, as_json: bool) -> None:
    if as_json:
        print_json({"id": key.id, "key": secret})
        return
    click.echo(f"{secret}\n\nThis is the only time it is shown. Its id is {key.id}.")


def _told(key: "Key", *names: str) -> dict[str, Any]:
    """Of a key, for the audit log."""
    shown = _json(key)
    return {name: shown[name] for name in names}


def _state(key: "Key", now: float) -> str:
    if key.revoked_at is not None:
        return f"revoked {moment(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'expired' if key.expires_at <= now else 'valid until'} {moment(key.expires_at)}"


def _json(key: "Key") -> dict[str, Any]:
    import msgspec

    from gateway.limits.model import shown

    found: dict[str, Any] = msgspec.to_builtins(key)
    moments = ("created_at", "expires_at", "revoked_at")
    return {
        **found,
        "limits": shown(key.limits),
        **{name: moment(found[name]) for name in moments},
    }
