"""Overrides between processes: a database, a Redis, and either one away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.cache.store import RedisStore
from gateway.errors import Unavailable
from gateway.ledger.audit import list_acts
from gateway.ledger.database import open_engine
from gateway.overrides.asked import lifted
from gateway.overrides.channel import Overrides
from gateway.overrides.model import NOTHING, Override
from gateway.overrides.stores import OverrideStore, RedisOverrides, SqlOverrides
from migrations import upgrade
from tests.conftest import RedisServer

NOW = 1_800_000_000.0


def drained(name: str, *, version: int = 1, until: float = NOW + 60) -> Override:
    return Override(slot=f"drain.{name}", value="drained", version=version, until=until, actor="me")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """SQLite without any table yet: a database that refuses."""
    made = open_engine(f"sqlite+aiosqlite:///{tmp_path / 'headgate.db'}")
    yield made
    await made.dispose()


def bring_up(engine: AsyncEngine) -> None:
    upgrade(engine.url.render_as_string(hide_password=False))


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    made = RedisStore(redis_server.url, timeout_s=0.5)
    yield made
    await made.aclose()


def process(*stores: OverrideStore, clock: Callable[[], float] = lambda: NOW) -> Overrides:
    return Overrides(stores, clock)


async def test_override_reaches_another_process_through_either_store(
    engine: AsyncEngine, redis: RedisStore
) -> None:
    """One look is enough, and the newer version wins whichever store it comes from."""
    bring_up(engine)
    sql, red = SqlOverrides(engine), RedisOverrides(redis.command)
    first, second = process(sql, red), process(sql, red)
    assert sorted(await first.put(drained("base"))) == ["database", "redis"]
    await second.look(sql)
    assert list(second.effect.drained) == ["base"]
    await first.put(lifted("drain.base", version=first.next_version("drain.base")))
    await second.look(red)
    assert second.effect is NOTHING
    await second.look(sql)
    assert second.current() == [], "an older version must not come back"


async def test_override_set_while_the_database_is_away_is_audited_when_it_is_back(
    engine: AsyncEngine, redis: RedisStore
) -> None:
    """Redis carries it meanwhile; whichever process sees the database first brings it, once."""
    sql, red = SqlOverrides(engine), RedisOverrides(redis.command)
    first, second = process(sql, red), process(sql, red)
    assert await first.put(drained("base")) == ["redis"]
    await second.look(red)
    await second.look(sql)
    assert list(second.effect.drained) == ["base"]
    assert second.problems(), "health must say that the database does not answer"
    bring_up(engine)
    await second.look(sql)
    await first.look(sql)
    assert second.problems() == []
    async with engine.connect() as connection:
        acts = await list_acts(connection)
    assert [(act.actor, act.action, act.target) for act in acts] == [
        ("me", "overrides.set", "drain.base")
    ]


async def test_every_act_of_an_outage_is_audited_once_and_when_it_was_done(
    engine: AsyncEngine, redis: RedisStore
) -> None:
    """What was set and lifted again while the database was away, in two processes, is told, too."""
    sql, red = SqlOverrides(engine), RedisOverrides(redis.command)
    first, second = process(sql, red), process(sql, red)
    await first.put(drained("base", version=5_000_000))
    await second.look(red)
    await second.put(lifted("drain.base", version=6_000_000, actor="you"))
    await first.look(red)
    await first.put(drained("base", version=7_000_000))
    bring_up(engine)
    for one in (first, second, first):
        await one.look(sql)
    await first.put(lifted("drain.base", version=8_000_000))
    async with engine.connect() as connection:
        acts = await list_acts(connection)
    assert [(act.actor, act.action, act.at) for act in acts] == [
        ("", "overrides.lift", 8.0),
        ("me", "overrides.set", 7.0),
        ("you", "overrides.lift", 6.0),
        ("me", "overrides.set", 5.0),
    ]


async def test_override_works_while_redis_is_away_and_returns_to_it(
    engine: AsyncEngine, redis: RedisStore, redis_server: RedisServer
) -> None:
    """The database is enough; a Redis that comes back empty is filled again."""
    bring_up(engine)
    sql, red = SqlOverrides(engine), RedisOverrides(redis.command)
    first = process(sql, red)
    redis_server.stop()
    assert await first.put(drained("base")) == ["database"]
    redis_server.start()
    while first.problems():
        await asyncio.sleep(0.05)  # the store leaves a lost Redis alone for a second
        await first.look(red)
    assert [one.slot for one in await red.read()] == ["drain.base"]


async def test_override_that_nobody_takes_is_refused(engine: AsyncEngine) -> None:
    """With every store away nothing changes, here neither, and the caller hears it."""
    alone = process(SqlOverrides(engine))
    with pytest.raises(Unavailable, match="nothing was changed"):
        await alone.put(drained("base"))
    assert alone.effect is NOTHING


async def test_override_ends_by_itself(engine: AsyncEngine) -> None:
    """At its time the effect is gone, without a look at any store."""
    bring_up(engine)
    now = [NOW]
    one = process(SqlOverrides(engine), clock=lambda: now[0])
    await one.put(drained("base", until=NOW + 10))
    await one.put(drained("small", until=NOW + 20))
    before = one.effect
    assert one.effect is before, "the same object as long as nothing changes"
    now[0] = NOW + 10
    assert list(one.effect.drained) == ["small"]
    now[0] = NOW + 20
    assert one.effect is NOTHING
    assert one.current() == []


async def test_hanging_store_is_not_waited_for(engine: AsyncEngine) -> None:
    """A database that neither answers nor refuses delays a write by the stated patience only."""

    class Hanging:
        name = "database"

        async def read(self) -> list[Override]:
            await asyncio.Event().wait()
            return []

        async def write(self, changes: object) -> None:
            await asyncio.Event().wait()

    bring_up(engine)
    one = process(Hanging(), SqlOverrides(engine))
    async with asyncio.timeout(5):
        assert await one.put(drained("base")) == ["database"]
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
