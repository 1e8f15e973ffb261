"""Settlements reach SQL exactly once, whatever happens on the way."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import check
from gateway.ledger.database import open_engine
from gateway.ledger.ledger import Ledger
from gateway.ledger.repository import Repository
from gateway.ledger.tables import charges, requests
from gateway.settings import Settings
from tests.gateway.ledger.samples import NOW, charge, settlement


async def _counts(engine: AsyncEngine) -> tuple[int, int]:
    async with engine.connect() as connection:
        rows = await connection.execute(select(func.count()).select_from(requests))
        booked = await connection.execute(select(func.count()).select_from(charges))
        return rows.scalar_one(), booked.scalar_one()


async def test_settlement_reads_back_as_written(engine: AsyncEngine, settings: Settings) -> None:
    """Every field of a request and its charges survives the way through SQL."""
    ledger = Ledger(settings, engine, worker="w1")
    await ledger.start()
    hostile = settlement(
        "r1",
        worker="w1",
        team="'; DROP TABLE requests; --",
        tags={'a"b': "x'y", "ünïcode": "🐧", "": ""},
        charges=(charge("r1"), charge("r1", 1, kind="reversal", reverses_seq=0, cost_nano_usd=-7)),
    )
    ledger.settle(hostile)
    assert await ledger.find("r1") == hostile, "not yet committed, found all the same"
    assert await ledger.flush()
    assert ledger.state()["pending"] == 0
    assert await ledger.find("r1") == hostile
    assert await ledger.find("nobody") is None
    await ledger.aclose()


async def test_flush_waits_for_what_is_settled_and_no_longer(
    engine: AsyncEngine, settings: Settings
) -> None:
    """Who asks for a report, or recovers a dead process, need not wait until traffic pauses."""
    ledger = Ledger(settings, engine)
    await ledger.start()

    async def keep_busy() -> None:
        for index in range(100_000):
            ledger.settle(settlement(f"later-{index}"))
            await asyncio.sleep(0)

    ledger.settle(settlement("r1"))
    busy = asyncio.create_task(keep_busy())
    assert await ledger.flush(timeout_s=60.0)
    assert not busy.done()
    busy.cancel()
    async with engine.connect() as connection:
        found = select(func.count()).where(requests.c.request_id == "r1")
        assert (await connection.execute(found)).scalar_one() == 1
    await ledger.aclose()


async def test_journal_is_empty_once_rows_are_committed(
    engine: AsyncEngine, settings: Settings
) -> None:
    """A clean stop leaves no segment behind, so the next start has nothing to replay."""
    ledger = Ledger(settings, engine)
    await ledger.start()
    for index in range(200):
        ledger.settle(settlement(f"r{index}"))
    await ledger.aclose()
    assert await _counts(engine) == (200, 200)
    assert list((Path(settings.state_dir) / "journal").iterdir()) == []


async def test_replay_changes_nothing_for_rows_that_arrived(
    engine: AsyncEngine, settings: Settings
) -> None:
    """A journal read again inserts what is missing and leaves what is there as it is."""
    first = Ledger(settings, engine)
    for index in range(10):
        first.settle(settlement(f"r{index}"))
    await first.journalled()
    await first._repository.write([settlement(f"r{index}") for index in range(6)])
    first._journal.close()  # as after a crash: nothing was marked as committed

    second = Ledger(settings, engine)
    await second.start()
    assert await second.flush()
    assert await _counts(engine) == (10, 10)
    assert second.state()["replayed_total"] == 10
    await second.aclose()


@pytest.mark.parametrize("together", [True, False])
async def test_requests_that_share_a_clients_id_are_all_booked(
    engine: AsyncEngine, together: bool
) -> None:
    """Two processes answered one id at once: both stand in the books, however often written."""
    first = settlement("same", worker="a")
    other = settlement("same", worker="b", started_at=NOW + 0.5)
    late = msgspec.structs.replace(other, charges=(*other.charges, charge("same", 7)))
    repository = Repository(engine, chained=True)
    for batch in [[first, other]] if together else [[first], [other], [other, first]]:
        await repository.write(batch)
    await repository.write([late])
    await Repository(engine, chained=True).write([first, late])
    assert await _counts(engine) == (2, 3)
    assert await repository.find("same") == first
    async with engine.connect() as connection:
        ids = set((await connection.execute(select(requests.c.request_id))).scalars())
        assert await check.rollup_problems(connection) == []
        assert (await check.check_chain(connection)).problem is None
    (named,) = ids - {"same"}
    found = await repository.find(named)
    assert found is not None
    assert (found.request.worker, len(found.charges)) == ("b", 2)


async def test_database_outage_loses_nothing_and_bounds_memory(
    tmp_path: Path, sqlite_url: str, settings: Settings
) -> None:
    """Without tables every write fails; rows wait in memory up to the bound, then on disk."""
    engine = open_engine(sqlite_url)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE requests RENAME TO away"))
    ledger = Ledger(settings, engine, max_pending=50)
    await ledger.start()
    for index in range(400):
        ledger.settle(settlement(f"r{index}"))
        if index % 100 == 0:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    state = ledger.state()
    assert state["pending"] == 50
    assert state["spilled_segments"] == 1
    assert not state["ok"]
    assert "requests" in state["database_error"]
    found = await ledger.find("r399")
    assert found is not None, "spilled to disk, found all the same"
    assert found.request.request_id == "r399"
    with pytest.raises(SQLAlchemyError):
        await ledger.find("never seen")

    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO requests"))
    assert await ledger.flush()
    assert await _counts(engine) == (400, 400)
    assert ledger.state()["ok"]
    assert ledger.state()["lost_total"] == 0
    await ledger.aclose()
    await engine.dispose()


async def test_rows_that_sql_refuses_do_not_hold_up_the_others(
    engine: AsyncEngine, settings: Settings
) -> None:
    """A number beyond BIGINT can never be inserted: it is kept aside, its neighbours go in."""
    ledger = Ledger(settings, engine)
    await ledger.start()
    for index in range(5):
        ledger.settle(settlement(f"good{index}"))
    ledger.settle(settlement("bad", prompt_tokens=2**70))
    ledger.settle(settlement("nul", user="a\x00b"))
    assert await ledger.flush()
    assert await _counts(engine) == (6, 6)
    assert ledger.state()["kept_aside_total"] == 1
    refused = (Path(settings.state_dir) / "journal" / "refused.bad").read_bytes()
    assert msgspec.json.decode(refused)["request"]["request_id"] == "bad"
    await ledger.aclose()


async def test_full_disk_is_reported_and_requests_go_on(
    engine: AsyncEngine, settings: Settings, tmp_path: Path
) -> None:
    """When the journal cannot be written, rows still reach SQL and the state says what is wrong."""
    ledger = Ledger(settings, engine)
    await ledger.start()
    ledger.settle(settlement("r1"))
    await ledger.journalled()
    ledger._journal.sync()  # so that only the write can fail
    segment = ledger._journal._segments[0]
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, segment.descriptor)
    os.close(full)
    ledger.settle(settlement("r2"))
    await ledger.journalled()
    state = ledger.state()
    assert state["journal_errors_total"] == 1
    assert "No space left" in state["journal_error"]
    assert not state["ok"]
    assert await ledger.flush()
    assert await _counts(engine) == (2, 2)
    ledger.settle(settlement("r3"))
    await ledger.journalled()
    assert ledger.state()["journal_error"] is None, "a new segment works again"
    await ledger.aclose()
    assert await _counts(engine) == (3, 3)


async def test_row_of_nobody_else_s_turn_is_journalled_at_once(
    engine: AsyncEngine, settings: Settings
) -> None:
    """Without company there is no turn of the event loop to wait for."""
    ledger = Ledger(settings, engine)
    ledger.settle(settlement("r1"))
    with pytest.raises(StopIteration):
        ledger.journalled(alone=True).send(None)
    (segment,) = (Path(settings.state_dir) / "journal").iterdir()
    assert len(segment.read_bytes().splitlines()) == 1


async def test_rows_of_one_turn_share_one_write_and_a_cancelled_waiter_loses_none(
    engine: AsyncEngine, settings: Settings
) -> None:
    """Rows settled together are journalled together, also when whoever settled one goes away."""
    ledger = Ledger(settings, engine)

    async def settle(name: str) -> None:
        ledger.settle(settlement(name))
        await ledger.journalled()

    tasks = [asyncio.create_task(settle(f"r{index}")) for index in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert ended[1:] == [None, None]
    (segment,) = (Path(settings.state_dir) / "journal").iterdir()
    assert len(segment.read_bytes().splitlines()) == 3
    await ledger.start()
    await ledger.aclose()
    assert await _counts(engine) == (3, 3)


async def test_lone_surrogates_do_not_lose_the_row(engine: AsyncEngine, settings: Settings) -> None:
    """A string that is no valid Unicode is stored with replacement characters."""
    ledger = Ledger(settings, engine)
    await ledger.start()
    ledger.settle(settlement("r1", user="a\ud800b"))
    assert await ledger.flush()
    found = await ledger.find("r1")
    assert found is not None
    assert found.request.user == "a?b"
    await ledger.aclose()
