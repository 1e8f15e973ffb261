"""`headgate keys`: who may ask."""

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

_TOLD = ("id", "name", "scopes", "role", "user", "expires_at")
"""Of a new key, to the audit log."""


@click.group()
def keys() -> None:
    """Create, list, limit, revoke and rotate API keys.

    By the running gateway; where none answers, in the database, which gateways on this host look at
    at once, others within two seconds.
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
@url_option
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
    url: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Make a key. It is shown once, now. Options that restrict it can be given again."""
    only = {"endpoints": endpoints, "models": models, "policies": policies, "networks": networks}
    body: dict[str, Any] = {
        "team": team,
        "name": name,
        "role": role,
        "user": user,
        "expires_in_s": None if expires_in_days is None else expires_in_days * 86_400,
        "only": {what: list(names) for what, names in only.items() if names},
        "limits": limits_given(limits),
    }
    if scopes:
        body["scopes"] = list(scopes)
    settings = settings_of(ctx, config)

    def directly() -> dict[str, Any]:
        import msgspec

        from gateway.ledger.key_store import KeyBody, create_key, shown_key

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            now = time.time()
            wanted = msgspec.convert(body, KeyBody).wanted(now)
            key, secret = await create_key(connection, wanted, now=now)
            return {**shown_key(key), "key": secret}

        return run_in_transaction(
            settings,
            work,
            act=("keys.create", team),
            details=lambda made: {what: made[what] for what in _TOLD},
        )

    made = administrate(settings, "POST", "/admin/keys", directly, json=body, url=url)
    _show_secret(made, as_json)


@keys.command("list")
@click.option("--team", help="Only this team's.")
@config_option
@url_option
@json_option
@click.pass_context
def list_(
    ctx: click.Context, team: str | None, config: str | None, url: str | None, as_json: bool
) -> None:
    """All keys: never the secret, only its first characters."""
    settings = settings_of(ctx, config)

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import list_keys, shown_key

        found = run_in_transaction(settings, lambda connection: list_keys(connection, team=team))
        return {"keys": [shown_key(key) for key in found]}

    params = {} if team is None else {"team": team}
    found = administrate(settings, "GET", "/admin/keys", directly, params=params, url=url)["keys"]
    if as_json:
        print_json([_json(key) for key in found])
        return
    table(
        ["id", "key", "team", "user", "name", "scopes", "limits", "created", "state"],
        [
            [
                key["id"],
                f"{key['prefix']}…",
                key["team"],
                key["user"] or "",
                key["name"],
                ", ".join(key["scopes"]) + (f" ({key['role']})" if key["role"] else ""),
                limits_text(key["limits"]),
                moment(key["created_at"]) or "",
                _state(key, time.time()),
            ]
            for key in found
        ],
    )


@keys.command()
@click.argument("key_id")
@limit_options
@config_option
@url_option
@json_option
@click.pass_context
def limit(
    ctx: click.Context,
    /,
    key_id: str,
    config: str | None,
    url: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Set a key's rate limits; those not given are gone."""
    settings, wanted = settings_of(ctx, config), limits_given(limits)

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import limit_key, shown_key
        from gateway.limits.model import check_limits

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            return shown_key(await limit_key(connection, key_id, check_limits(wanted)))

        return run_in_transaction(
            settings, work, act=("keys.limit", key_id), details=lambda _: {"limits": wanted}
        )

    key = administrate(settings, "PATCH", _path(key_id), directly, json={"limits": wanted}, url=url)
    if as_json:
        print_json(_json(key))
    else:
        click.echo(f"{key['id']}: {limits_text(key['limits']) or 'no rate limits'}.")


@keys.command()
@click.argument("key_id")
@config_option
@url_option
@json_option
@click.pass_context
def revoke(
    ctx: click.Context, key_id: str, config: str | None, url: str | None, as_json: bool
) -> None:
    """Let a key in no more."""
    settings = settings_of(ctx, config)

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import revoke_key, shown_key

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            return shown_key(await revoke_key(connection, key_id, now=time.time()))

        return run_in_transaction(settings, work, act=("keys.revoke", key_id))

    key = administrate(settings, "DELETE", _path(key_id), directly, url=url)
    if as_json:
        print_json(_json(key))
    else:
        since = moment(key["revoked_at"])
        click.echo(f"{key['id']} of team {key['team']} is revoked since {since}.")


@keys.command()
@click.argument("key_id")
@click.option(
    "--overlap-s",
    type=click.FloatRange(min=0),
    default=0.0,
    help="How long the old secret still works.",
)
@config_option
@url_option
@json_option
@click.pass_context
def rotate(
    ctx: click.Context,
    key_id: str,
    overlap_s: float,
    config: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Give a key a new secret; id, team, budgets and history stay."""
    settings, body = settings_of(ctx, config), {"overlap_s": overlap_s}

    def directly() -> dict[str, Any]:
        from gateway.ledger.key_store import rotate_key

        async def work(connection: "AsyncConnection") -> dict[str, Any]:
            key, secret = await rotate_key(connection, key_id, now=time.time(), **body)
            return {"id": key.id, "key": secret}

        return run_in_transaction(
            settings, work, act=("keys.rotate", key_id), details=lambda _: body
        )

    made = administrate(settings, "POST", f"{_path(key_id)}/rotate", directly, json=body, url=url)
    _show_secret(made, as_json)


def _path(key_id: str) -> str:
    return f"/admin/keys/{quote(key_id, safe='')}"


def _show_secret(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"id": made["id"], "key": made["key"]})
        return
    click.echo(f"{made['key']}\n\nThis is the only time it is shown. Its id is {made['id']}.")


def _state(key: dict[str, Any], now: float) -> str:
    if key["revoked_at"] is not None:
        return f"revoked {moment(key['revoked_at'])}"
    if key["expires_at"] is None:
        return "valid"
    return f"{'expired' if key['expires_at'] <= now else 'valid until'} {moment(key['expires_at'])}"


def _json(key: dict[str, Any]) -> dict[str, Any]:
    moments = ("created_at", "expires_at", "revoked_at")
    return {**key, **{name: moment(key[name]) for name in moments}}
