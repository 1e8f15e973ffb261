"""The disk under the journal is full: nothing is answered that would stand nowhere."""

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.database import open_engine
from gateway.ledger.journal import Journal, take_over
from gateway.ledger.ledger import Ledger
from gateway.ledger.reservation_log import Held, ReservationLog
from gateway.ledger.reservation_log import take_over as take_over_reservations
from gateway.ledger.tables import requests
from gateway.settings import Settings
from tests.gateway.ledger.samples import settlement

ROOM = 32 * 1024
LARGE = "x" * (2 * ROOM)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond ROOM: what crosses it is written in part, all after it is refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("not within 20 s")


def _policy(settings: Settings, outage: Literal["serve", "refuse"]) -> Settings:
    database = msgspec.structs.replace(settings.database, on_ledger_outage=outage)
    return msgspec.structs.replace(settings, database=database)


@pytest.mark.parametrize("outage", ["serve", "refuse"])
async def test_rows_of_a_full_disk_arrive_once_when_there_is_room(
    sqlite_url: str, settings: Settings, outage: Literal["serve", "refuse"]
) -> None:
    """Journal and database are on it: requests are refused in any case, what was answered waits."""
    engine = open_engine(sqlite_url)
    ledger = Ledger(_policy(settings, outage), engine)
    await ledger.start()
    with full_disk():
        for name in ("r1", "r2"):
            ledger.settle(settlement(name, tags={"a": LARGE}))
            await ledger.journalled()
        await _until(lambda: ledger.refusal is not None and "Neither" in ledger.refusal)
        assert ledger.state()["journal_error"] in ("File too large", "No space left on device")
    await _until(lambda: ledger.refusal is None)
    assert await ledger.flush()
    await ledger.aclose()
    async with engine.connect() as connection:
        found = await connection.execute(select(requests.c.request_id))
        assert sorted(found.scalars()) == ["r1", "r2"]
    await engine.dispose()
    assert list((Path(settings.state_dir) / "journal").iterdir()) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("outage", ["serve", "refuse"])
async def test_full_journal_beside_a_database_that_answers_follows_the_policy(
    engine: AsyncEngine, settings: Settings, outage: Literal["serve", "refuse"]
) -> None:
    """Rows go straight to the database; whether requests are served meanwhile, operators say."""
    ledger = Ledger(_policy(settings, outage), engine)
    await ledger.start()
    with full_disk():
        ledger.settle(settlement("r1", tags={"a": LARGE}))
        await ledger.journalled()
        assert await ledger.flush()
        refusal = ledger.refusal
    if outage == "serve":
        assert refusal is None
    else:
        assert refusal is not None
        assert "journal" in refusal
    await _until(lambda: ledger.state()["ok"])
    assert ledger.refusal is None
    await ledger.aclose()


async def test_rows_that_only_memory_has_are_journalled_when_there_is_room(
    sqlite_url: str, settings: Settings
) -> None:
    """The database stays away, so until then a kill would have lost them."""
    engine = open_engine(sqlite_url.replace("headgate.db", "nowhere/none.db"))
    (Path(settings.state_dir) / "nowhere").rmdir()
    ledger = Ledger(settings, engine)
    await ledger.start()
    with full_disk():
        ledger.settle(settlement("r1", tags={"a": LARGE}))
        await ledger.journalled()
        await _until(lambda: ledger.refusal is not None)
    await _until(lambda: ledger.refusal is None)
    (segment,) = (Path(settings.state_dir) / "journal").iterdir()
    assert segment.read_bytes().count(b"\n") == 1
    await ledger.aclose()
    await engine.dispose()


def test_journal_takes_whole_rows_before_and_after(tmp_path: Path) -> None:
    """What was written of a refused row is cut off, so the next one begins a line."""
    journal = Journal(tmp_path)
    journal.append(b"before")
    with full_disk():
        assert journal.append(LARGE.encode()) is None
        assert journal.append(b"small") is not None, "a smaller one still fits"
        assert journal.append(LARGE.encode()) is None
    assert journal.try_again()
    journal.append(b"after")
    journal.close()
    (orphan,) = take_over(tmp_path)
    lines = orphan.path.read_bytes().splitlines()
    assert [line[9:] for line in lines] == [b"before", b"small", b"after"]
    orphan.release()


def _held(name: str, user: str = "") -> Held:
    return Held(
        request_id=name,
        nano_usd=1,
        at=0.0,
        endpoint="chat/completions",
        model="auto",
        team="search",
        key="key_1",
        user=user,
    )


def test_refused_reservation_leaves_the_others_readable(tmp_path: Path) -> None:
    """It never ran, so nobody books it after a crash; those before and after it are found."""
    log = ReservationLog(tmp_path, owner="me")
    log.hold(_held("before"))
    with full_disk(), pytest.raises(OSError, match=r"No space|too large"):
        log.hold(_held("refused", LARGE))
    log.hold(_held("after"))
    log.close()
    (orphan,) = take_over_reservations(tmp_path)
    assert [one.request_id for one in orphan.open_reservations()] == ["before", "after"]
    orphan.release()


def test_reservation_log_that_cannot_begin_anew_keeps_its_file(tmp_path: Path) -> None:
    """Looking again and again leaves no files behind, and loses nothing that is open."""
    log = ReservationLog(tmp_path, owner="me")
    log.hold(_held("open", LARGE))
    log.hold(_held("ended"))
    log.end("ended")
    with full_disk():
        for _ in range(5):
            log.tidy()
        assert len(list(tmp_path.iterdir())) == 1
    log.tidy()
    log.hold(_held("after"))
    log.close()
    (orphan,) = take_over_reservations(tmp_path)
    assert [one.request_id for one in orphan.open_reservations()] == ["open", "after"]
    orphan.release()
