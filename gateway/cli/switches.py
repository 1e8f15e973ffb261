"""For the commands that set and lift overrides; not a command.

They ask the running gateway, which works while the database or Redis is down. Where none answers
they go to the stores themselves; every gateway looks there each second.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gateway.cli.administration import administrate
from gateway.cli.common import fail, log_to_stderr, settings_of
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from gateway.overrides.model import Wanted
    from gateway.overrides.stores import OverrideStore

T = TypeVar("T")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PATH = "/admin/overrides"


class Duration(click.ParamType[float]):
    """30s, 15m, 2h, 7d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value).strip())
        if found is None or not float(found.group(1)):
            self.fail(f"{value!r}: a number with s, m, h or d, such as 2h", param, ctx)
        return float(found.group(1)) * _UNITS[found.group(2)]


for_option: Callable[[Any], Any] = click.option(
    "--for", "for_s", type=Duration(), default="24h", show_default=True, help="How long: 30m, 2h."
)
why_option: Callable[[Any], Any] = click.option("--why", default="", help="For the audit log.")


def set_override(
    ctx: click.Context, config: str | None, url: str | None, slot: str, **fields: Any
) -> dict[str, Any]:
    """Set a slot; exits 1 where that is refused or nobody takes it."""
    from gateway.ledger.audit import command_line_actor
    from gateway.overrides.model import Wanted

    settings = settings_of(ctx, config)
    wanted = Wanted(slot=slot, **fields, by=command_line_actor())
    body = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
    return administrate(
        settings, "PUT", _PATH, lambda: _directly(settings, slot, wanted), url=url, json=body
    )


def lift_override(
    ctx: click.Context, config: str | None, url: str | None, slot: str
) -> dict[str, Any]:
    """End what is in force; exits 1 where nothing is."""
    from gateway.ledger.audit import command_line_actor

    settings = settings_of(ctx, config)
    params = {"slot": slot, "by": command_line_actor()}
    return administrate(
        settings, "DELETE", _PATH, lambda: _directly(settings, slot, None), url=url, params=params
    )


def current_overrides(
    ctx: click.Context, config: str | None, url: str | None
) -> list[dict[str, Any]]:
    """All in force."""
    from gateway.overrides.model import shown

    settings = settings_of(ctx, config)

    async def read(stores: "list[OverrideStore]", _engine: "AsyncEngine") -> dict[str, Any]:
        newest = await _newest(stores)
        now = time.time()
        live = [one for one in newest.values() if one.holds(now)]
        return {"overrides": [{**shown(one), "by": one.actor, "why": one.why} for one in live]}

    found = administrate(settings, "GET", _PATH, lambda: _on_stores(settings, read), url=url)
    return list(found["overrides"])


def _directly(settings: Settings, slot: str, wanted: "Wanted | None") -> dict[str, Any]:
    """Write to the stores themselves; one that takes it is enough."""
    from gateway.ledger.audit import command_line_actor
    from gateway.overrides.asked import Asked, lifted
    from gateway.overrides.model import shown
    from gateway.overrides.stores import AWAY
    from gateway.routing.policy_book import PolicyBook

    async def write(stores: "list[OverrideStore]", engine: "AsyncEngine") -> dict[str, Any]:
        newest, now = await _newest(stores), time.time()

        def version(slot: str) -> int:
            at = round(now * 1e6)
            return at if slot not in newest else max(at, newest[slot].version + 1)

        who = command_line_actor()
        if wanted is None:
            if slot not in newest or not newest[slot].holds(now):
                fail(f"no override {slot!r} is in force")
            override = lifted(slot, version=version(slot), actor=who)
        else:
            names = [backend.name for backend in settings.backends]
            asked = Asked(names, PolicyBook(settings.routing), engine)
            override = await asked.override(wanted, now=now, version=version, actor=who)
        took, errors = [], []
        for store in stores:
            try:
                await store.write([override])
                took.append(store.name)
            except AWAY as error:
                errors.append(f"{store.name}: {str(error).splitlines()[0]}")
        if not took:
            fail(f"nobody took it: {'; '.join(errors)}")
        done = {"slot": slot, "lifted": True} if wanted is None else shown(override)
        return done | {"stores": took}

    return _on_stores(settings, write)


async def _newest(stores: "list[OverrideStore]") -> dict[str, Any]:
    """The newest version of each slot in any store that answers."""
    from gateway.overrides.stores import AWAY

    newest: dict[str, Any] = {}
    for store in stores:
        try:
            found = await store.read()
        except AWAY:
            continue
        for one in found:
            if one.slot not in newest or newest[one.slot].version < one.version:
                newest[one.slot] = one
    return newest


def _on_stores(settings: Settings, work: Callable[..., Awaitable[T]]) -> T:
    """Run with the database, brought up to date if it answers, and with Redis where the
    configuration says where it is."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.cache.store import RedisStore
    from gateway.errors import GatewayError
    from gateway.ledger.database import open_engine
    from gateway.overrides.stores import OverrideStore, RedisOverrides, SqlOverrides
    from gateway.processes.runtime import database_url
    from migrations import upgrade

    log_to_stderr()
    url = database_url(settings)

    async def run() -> T:
        engine = open_engine(url)
        stores: list[OverrideStore] = [SqlOverrides(engine)]
        at = settings.cache.redis
        redis = None if at in ("auto", "memory") else RedisStore(at, timeout_s=2.0)
        if redis is not None:
            stores.append(RedisOverrides(redis.command))
        try:
            return await work(stores, engine)
        finally:
            await engine.dispose()
            if redis is not None:
                await redis.aclose()

    with contextlib.suppress(SQLAlchemyError, OSError, CommandError):
        upgrade(url)
    try:
        return asyncio.run(run())
    except GatewayError as error:
        fail(error.message)


def said(answer: dict[str, Any], words: str) -> None:
    """Tell what was done, and by which stores it travels."""
    click.echo(f"{words}; kept in {' and '.join(answer['stores'])}")
