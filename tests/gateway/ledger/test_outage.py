"""The database goes away under load and comes back: no row is lost, none is there twice."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import check
from gateway.ledger.database import open_engine
from gateway.ledger.ledger import Ledger
from gateway.ledger.tables import charges, requests
from gateway.settings import Settings
from migrations import upgrade
from tests.gateway.ledger.samples import settlement
from tests.gateway.ledger.stoppable import StoppablePostgres


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoppablePostgres]:
    server = StoppablePostgres(tmp_path_factory.mktemp("stoppable"))
    upgrade(server.url)
    yield server
    server.cleanup()


@pytest.fixture
async def own_engine(own_postgres: StoppablePostgres) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(own_postgres.url)
    yield engine
    await engine.dispose()


def _refusing(settings: Settings) -> Settings:
    database = msgspec.structs.replace(settings.database, on_ledger_outage="refuse")
    return msgspec.structs.replace(settings, database=database)


async def _until(holds: Any, what: str) -> None:
    for _ in range(600):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within 30 s: {what}")


@pytest.mark.timeout(300)
async def test_postgres_away_under_load_loses_and_doubles_nothing(
    own_postgres: StoppablePostgres, own_engine: AsyncEngine, settings: Settings
) -> None:
    """An outage of many memory-fulls: rows wait on disk in few files, and all arrive once."""
    ledger = Ledger(settings, own_engine, max_pending=500)
    ledger._journal._segment_bytes = 64 * 1024
    await ledger.start()
    number = 0

    async def load(seconds: float) -> None:
        nonlocal number
        ends = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < ends:
            for _ in range(20):
                ledger.settle(settlement(f"r{number}", team=f"team {number % 5}"))
                number += 1
            await ledger.journalled()
            await asyncio.sleep(0.005)

    await load(0.5)
    await asyncio.to_thread(own_postgres.stop)
    await load(2.0)
    state = ledger.state()
    assert state["pending"] <= 500
    assert state["spilled_segments"] > 0
    assert len(list((Path(settings.state_dir) / "journal").iterdir())) < 64
    assert ledger.refusal is None, "requests are still served"
    assert ledger.waiting_bytes() == state["journal_bytes"] > 0
    bringing_back = asyncio.create_task(asyncio.to_thread(own_postgres.start))
    await load(0.5)
    await bringing_back
    assert await ledger.flush(60)
    state = ledger.state()
    assert (state["lost_total"], state["kept_aside_total"]) == (0, 0)
    async with own_engine.connect() as connection:
        for table in (requests, charges):
            rows = await connection.execute(select(func.count()).select_from(table))
            assert rows.scalar_one() == number
        assert await check.rollup_problems(connection) == []
    await ledger.aclose()
    assert list((Path(settings.state_dir) / "journal").iterdir()) == []


async def test_refuse_answers_503_until_the_database_is_back(
    own_postgres: StoppablePostgres, own_engine: AsyncEngine, settings: Settings
) -> None:
    """`on_ledger_outage = "refuse"`: the first failed write closes the door, the next opens it."""
    ledger = Ledger(_refusing(settings), own_engine)
    await ledger.start()
    ledger.settle(settlement("before"))
    assert await ledger.flush()
    await asyncio.to_thread(own_postgres.stop)
    assert ledger.refusal is None, "nobody has noticed yet"
    ledger.settle(settlement("during"))
    await _until(lambda: ledger.refusal is not None, "the outage is noticed")
    assert "database" in str(ledger.refusal)
    await asyncio.to_thread(own_postgres.start)
    await _until(lambda: ledger.refusal is None, "the row is written")
    assert await ledger.flush()
    async with own_engine.connect() as connection:
        rows = await connection.execute(text("SELECT request_id FROM requests ORDER BY 1"))
        assert list(rows.scalars()) == ["before", "during"]
    await ledger.aclose()


async def test_committed_rows_leave_the_journal(engine: AsyncEngine, settings: Settings) -> None:
    """Once in SQL, nothing of a request stays in the segment that is still open."""
    ledger = Ledger(settings, engine)
    await ledger.start()
    for name in ("one", "two"):
        ledger.settle(settlement(name, user="canary"))
        assert await ledger.flush()
        (segment,) = (Path(settings.state_dir) / "journal").iterdir()
        assert segment.read_bytes() == b""
    assert ledger.state()["journal_bytes"] == 0
    await ledger.aclose()
