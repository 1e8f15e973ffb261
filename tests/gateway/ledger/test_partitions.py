"""On PostgreSQL months can be partitions: nothing else changes, but for how old ones go."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import check, partitions
from gateway.ledger.database import open_engine
from gateway.ledger.feedback import add_feedback
from gateway.ledger.partitions import Month
from gateway.ledger.pricing import reverse
from gateway.ledger.records import Settlement
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.retention import tidy
from gateway.ledger.tables import charges, feedback, requests
from gateway.processes.assembly import _id_maker
from gateway.settings import Settings
from migrations import runner
from tests.gateway.ledger.conftest import Postgres
from tests.gateway.ledger.samples import charge, settlement


def at(year: int, month: int, day: int) -> float:
    """Unix seconds."""
    return datetime(year, month, day, 12, tzinfo=UTC).timestamp()


def of_day(month: int, day: int, name: str = "", **fields: Any) -> Settlement:
    """A request of 2026, under an id of ours or the client's."""
    moment = at(2026, month, day)
    request_id = name or _id_maker(lambda: moment)()
    return settlement(
        request_id, started_at=moment, charges=(charge(request_id, at=moment),), **fields
    )


@pytest.fixture
def url(postgres: Postgres) -> str:
    """An empty PostgreSQL database."""
    return postgres.migrated()


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    """The same, which has no partitions before and after."""
    engine = open_engine(url)
    yield engine
    async with engine.begin() as connection:
        if await partitions.partitioned(connection):
            await partitions.end(connection)
    await engine.dispose()


async def _begin(engine: AsyncEngine, now: float) -> None:
    async with engine.begin() as connection:
        await partitions.begin(connection, now=now)


async def _where(engine: AsyncEngine) -> dict[str, str]:
    """In which table each request lies."""
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT request_id, tableoid::regclass FROM requests"))
        return {row[0]: str(row[1]) for row in rows}


async def _sound(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await check.rollup_problems(connection) == []
        assert await check.row_problems(connection) == []
        assert (await check.check_chain(connection)).problem is None


def test_ids_begin_with_their_month() -> None:
    """Ids of ours sort between the bounds of the month in which they are made, and only there."""
    for month in (Month(2026, 11), Month(2026, 12), Month(2027, 1)):
        first, last = month.start_us / 1e6, month.after.start_us / 1e6 - 0.001
        for moment in (first, random.Random(1).uniform(first, last), last):
            assert Month.of(moment) == month
            made = _id_maker(partial(float, moment))()
            assert month.first_id <= made < month.after.first_id


async def test_rows_are_written_found_and_counted_as_ever(engine: AsyncEngine) -> None:
    """Old rows stay, new ones of ours go to their month, clients' ids to the rest; each once."""
    old, new, named = of_day(10, 3), of_day(11, 3), of_day(11, 4, "theirs", user=None)
    repository = Repository(engine, chained=True)
    await repository.write([old])
    await _begin(engine, at(2026, 10, 20))
    late = Settlement(
        request=new.request, charges=(*new.charges, charge(new.request.request_id, 3))
    )
    for batch in ([new, named], [old, new], [late], [late, named]):
        await Repository(engine, chained=True).write(batch)
    assert await _where(engine) == {
        old.request.request_id: "requests_rest",
        new.request.request_id: "requests_2026_11",
        "theirs": "requests_rest",
    }
    for one in (old, late, named):
        assert await repository.find(one.request.request_id) == one
    found = await costs_report(engine, Settings(), group_by="user", now=datetime.now(UTC))
    assert (found["totals"]["requests"], found["totals"]["cost_usd"]) == (3, "0.000004")
    await _sound(engine)


async def test_months_are_dropped_when_all_of_them_is_old(engine: AsyncEngine) -> None:
    """Rows with recent corrections outlive their month, clients' go day by day; sums stay."""
    await _begin(engine, at(2026, 10, 20))
    corrected = of_day(11, 5)
    name = corrected.request.request_id
    recent = reverse(corrected.charges[0], seq=1, at=at(2027, 1, 20))
    corrected = Settlement(request=corrected.request, charges=(*corrected.charges, recent))
    gone = [of_day(11, 3), of_day(11, 6, "theirs")]
    kept = [corrected, of_day(12, 3), of_day(12, 28)]
    await Repository(engine, chained=True).write([*gone, *kept])
    async with engine.begin() as connection:
        for one in (gone[0], kept[1]):
            await add_feedback(connection, one.request.request_id, score=1, comment="x", now=0.0)
    asked: dict[str, Any] = {"group_by": "day,kind", "now": datetime(2027, 2, 1, tzinfo=UTC)}
    before = await costs_report(engine, Settings(), **asked)

    assert await tidy(engine, retention_days=30, now=at(2027, 1, 22)) == 2
    assert await _where(engine) == {
        name: "requests_rest",
        kept[1].request.request_id: "requests_2026_12",
        kept[2].request.request_id: "requests_2026_12",
    }
    async with engine.connect() as connection:
        listed = [Month(2026, 12), Month(2027, 1), Month(2027, 2), Month(2027, 3)]
        assert await partitions.months(connection) == listed
        left = (await connection.execute(select(feedback.c.request_id))).scalars().all()
        assert left == [kept[1].request.request_id]
        seqs = select(charges.c.seq).where(charges.c.request_id == name).order_by(charges.c.seq)
        assert (await connection.execute(seqs)).scalars().all() == [0, 1]
    assert await costs_report(engine, Settings(), **asked) == before
    await _sound(engine)
    assert await tidy(engine, retention_days=30, now=at(2027, 3, 1)) == 3
    assert await _where(engine) == {}


async def test_a_client_s_id_of_a_coming_month_moves_into_it(engine: AsyncEngine) -> None:
    """What clients call their requests keeps no month from having its partition."""
    await _begin(engine, at(2026, 10, 20))
    early = Month(2027, 2).first_id + "-theirs"
    await Repository(engine).write([of_day(11, 3, early)])
    assert await _where(engine) == {early: "requests_rest"}
    await tidy(engine, retention_days=None, now=at(2027, 1, 2))
    assert await _where(engine) == {early: "requests_2027_02"}
    await _sound(engine)


async def test_schemas_change_under_partitions_and_without_them(
    engine: AsyncEngine, url: str
) -> None:
    """Down a few steps, up again, back to whole tables: the schema is right, and no row is lost."""
    await _begin(engine, at(2026, 10, 20))
    rows = [of_day(10, 3), of_day(11, 3), of_day(12, 3)]
    await Repository(engine).write(rows)
    assert runner.differences(url) == []
    runner.downgrade(url, "0004")
    runner.upgrade(url)
    assert runner.differences(url) == []
    assert len(await _where(engine)) == 3
    async with engine.begin() as connection:
        await partitions.end(connection)
    assert runner.differences(url) == []
    assert set((await _where(engine)).values()) == {"requests"}
    for one in rows:
        found = await Repository(engine).find(one.request.request_id)
        assert found is not None
        assert found.charges == one.charges


async def test_who_cannot_have_the_tables_soon_gives_up(engine: AsyncEngine) -> None:
    """A long report keeps partitions from being made, and partitions keep nobody waiting."""
    async with engine.connect() as reader:
        await reader.execute(select(requests.c.request_id))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await _begin(engine, at(2026, 10, 20))
    async with engine.connect() as connection:
        assert not await partitions.partitioned(connection)
