"""`headgate data`: a customer's data, in every store."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.common import (
    config_option,
    fail,
    json_option,
    log_to_stderr,
    print_json,
    settings_of,
)
from gateway.ledger.stamp import touch
from gateway.processes.runtime import database_url
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.ledger.audit import ActOutcome
    from gateway.privacy.model import Places, SubjectKind

_team = click.option("--team", metavar="NAME", help="A team, its keys, and users of no other team.")
_user = click.option("--user", metavar="NAME", help="A user, as requests name it.")
_key = click.option("--key", metavar="ID", help="A key's id.")


@click.group()
def data() -> None:
    """Export or delete all that is stored about a team, a user or a key; see docs/data.md."""


@data.command()
@_team
@_user
@_key
@click.option("--dry-run", is_flag=True, help="Count what is there; print none of it.")
@config_option
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    team: str | None,
    user: str | None,
    key: str | None,
    dry_run: bool,
    config: str | None,
    as_json: bool,
) -> None:
    """Print everything as one JSON document (with or without --json)."""
    subject, settings = _subject(team=team, user=user, key=key), settings_of(ctx, config)
    if dry_run:
        _show(subject, _counted(settings, subject), as_json=as_json, dry_run=True)
    else:
        print_json(_run(settings, lambda where: _export(where, *subject)))


@data.command()
@_team
@_user
@_key
@click.option("--dry-run", is_flag=True, help="Count what is there; delete nothing.")
@config_option
@json_option
@click.pass_context
def delete(
    ctx: click.Context,
    team: str | None,
    user: str | None,
    key: str | None,
    dry_run: bool,
    config: str | None,
    as_json: bool,
) -> None:
    """Remove it from every store. Sums and the audit chain stay; nobody can tell whose they are."""
    subject, settings = _subject(team=team, user=user, key=key), settings_of(ctx, config)
    if dry_run:
        counts = _counted(settings, subject)
    else:
        counts = _run(settings, lambda where: _delete(where, *subject))
        touch(Path(settings.state_dir))
    _show(subject, counts, as_json=as_json, dry_run=dry_run)
    if as_json:
        return
    if not any(counts.values()):
        kind, name = subject
        click.echo(f"nothing is stored of {kind} {name!r}; is that the name that requests bear?")
    else:
        click.echo("nothing was deleted" if dry_run else "deleted")


def _counted(settings: Settings, subject: "tuple[SubjectKind, str]") -> dict[str, int]:
    """How many records each store has."""
    from gateway.privacy import stores

    found = _run(settings, lambda where: stores.export(where, *subject))
    return {store: len(records) for store, records in found["stores"].items()}


def _show(
    subject: "tuple[SubjectKind, str]", counts: dict[str, int], *, as_json: bool, dry_run: bool
) -> None:
    if as_json:
        kind, name = subject
        print_json({"kind": kind, "name": name, "dry_run": dry_run, "stores": counts})
        return
    for store, count in counts.items():
        click.echo(f"{store:24} {count}")


async def _export(where: "Places", kind: "SubjectKind", name: str) -> dict[str, Any]:
    """Export, and leave a row in the audit log; deleting empties it."""
    from gateway.ledger.audit import Act, command_line_actor, record
    from gateway.privacy import stores

    found = await stores.export(where, kind, name)
    act = Act(actor=command_line_actor(), action="data.export", target=f"{kind}:{name}")
    async with where.engine.begin() as connection:
        await record(connection, act)
    return found


async def _delete(where: "Places", kind: "SubjectKind", name: str) -> dict[str, int]:
    """Delete, and leave a row in the audit log that does not say who is forgotten."""
    from gateway.ledger.audit import Act, command_line_actor, record
    from gateway.privacy import stores

    counts: dict[str, int] = {}
    outcome: ActOutcome = "failed"
    try:
        counts = await stores.delete(where, kind, name)
        outcome = "done"
    finally:
        act = Act(
            actor=command_line_actor(),
            action="data.delete",
            target=kind,
            outcome=outcome,
            details={"stores": counts},
        )
        async with where.engine.begin() as connection:
            await record(connection, act)
    return counts


def _subject(**asked: str | None) -> "tuple[SubjectKind, str]":
    given = [(kind, name) for kind, name in asked.items() if name]
    if len(given) != 1:
        fail("give exactly one of --team, --user and --key", code=2)
    return given[0]  # type: ignore[return-value]


def _run(settings: Settings, work: "Callable[[Places], Awaitable[Any]]") -> Any:
    from redis.exceptions import RedisError
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.ledger.database import without_password
    from gateway.privacy import stores
    from gateway.privacy.model import DeletionError
    from migrations import upgrade

    log_to_stderr()

    async def run() -> Any:
        async with stores.places(settings, _redis_url(settings)) as where:
            return await work(where)

    url = database_url(settings)
    try:
        upgrade(url)
        return asyncio.run(run())
    except DeletionError as error:
        fail(str(error))
    except (SQLAlchemyError, OSError) as error:
        fail(f"the database {without_password(url)} refuses: {error}")
    except RedisError as error:
        fail(f"Redis refuses: {error}")


def _redis_url(settings: Settings) -> str | None:
    """Where the caches are, whether or not a gateway runs."""
    from gateway.processes.run_folder import run_folder_path

    redis = settings.cache.redis
    if redis == "memory":
        return None
    if redis != "auto":
        return redis
    return f"unix://{run_folder_path(Path(settings.state_dir)) / 'redis.sock'}"
