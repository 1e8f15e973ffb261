"""Old rows go, and no sum changes."""

import asyncio
import time
from datetime import UTC, datetime

import msgspec
import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import check, state
from gateway.ledger.feedback import add_feedback
from gateway.ledger.ledger import Ledger
from gateway.ledger.report_query import ReportError
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.retention import prune
from gateway.ledger.tables import (
    charges,
    feedback,
    requests,
    rollup_details,
    rollup_values,
    rollups,
)
from gateway.settings import Settings
from tests.gateway.ledger.samples import NOW, charge, settlement

DAY_S = 86_400


async def _count(engine: AsyncEngine) -> tuple[int, int]:
    async with engine.connect() as connection:
        tables = (requests, charges)
        found = [await connection.execute(select(func.count()).select_from(t)) for t in tables]
        return found[0].scalar_one(), found[1].scalar_one()


async def test_pruned_rows_stay_in_reports_and_in_the_chain(engine: AsyncEngine) -> None:
    """Requests of old days go, those with a recent correction stay; reports and checks agree."""
    rows = [
        settlement(f"r{age}", started_at=NOW - age * DAY_S, charges=(charge(f"r{age}", at=at),))
        for age in (0, 1, 2, 3, 10)
        for at in [NOW - age * DAY_S]
    ]
    corrected = charge("late", 1, kind="reversal", reverses_seq=0, cost_nano_usd=-1_000)
    old = charge("late", at=NOW - 10 * DAY_S)
    rows.append(settlement("late", started_at=NOW - 10 * DAY_S, charges=(old, corrected)))
    await Repository(engine, chained=True).write(rows)
    async with engine.begin() as connection:
        for name in ("r0", "r10"):
            await add_feedback(connection, name, score=1, comment=f"I am {name}", now=NOW)
    asked = {"group_by": "day,team,kind", "now": datetime(2026, 11, 22, tzinfo=UTC)}
    before = await costs_report(engine, Settings(), **asked)

    assert await prune(engine, retention_days=2, now=NOW) == 2
    assert await _count(engine) == (4, 5)
    async with engine.connect() as connection:
        comments = (await connection.execute(select(feedback.c.comment))).scalars().all()
    assert comments == ["I am r0"], "nobody could find the other's author any more"
    assert await costs_report(engine, Settings(), **asked) == before
    async with engine.connect() as connection:
        assert await check.rollup_problems(connection) == []
        found = await check.check_chain(connection)
        assert (found.problem, found.links, found.pruned) == (None, 13, 4)
        assert await check.rebuild_rollups(connection) > 0
    assert await costs_report(engine, Settings(), **asked) == before
    assert await prune(engine, retention_days=2, now=NOW) == 0


async def test_details_go_with_their_rows(engine: AsyncEngine) -> None:
    """No tag outlives the days that are kept; reports by tag begin where the rows do."""
    rows = [
        settlement(
            f"r{age}",
            tags={"who": f"canary {age}"} if age else {},
            started_at=NOW - age * DAY_S,
            charges=(charge(f"r{age}", at=NOW - age * DAY_S),),
        )
        for age in (0, 1, 2, 3, 10)
    ]
    await Repository(engine).write(rows)
    assert await prune(engine, retention_days=2, now=NOW) == 2
    async with engine.connect() as connection:
        spans = select(rollup_details.c.span_s).distinct()
        assert set((await connection.execute(spans)).scalars()) == {DAY_S // 48, DAY_S}, (
            "a month of which days went is no longer their sum"
        )
        names = select(rollup_values.c.value).where(rollup_values.c.dimension == "tag:who")
        assert set((await connection.execute(names)).scalars()) == {"canary 1", "canary 2"}
        assert await check.rollup_problems(connection) == []
    asked = {"group_by": "tag:who", "now": datetime(2026, 11, 22, tzinfo=UTC)}
    found = await costs_report(engine, Settings(), **asked)
    assert {row["tag:who"] for row in found["rows"]} == {None, "canary 1", "canary 2"}
    await Repository(engine).write(rows[4:])
    assert await prune(engine, retention_days=2, now=NOW) == 1, "what comes late goes, too"
    async with engine.connect() as connection:
        assert set((await connection.execute(names)).scalars()) == {"canary 1", "canary 2"}


async def test_rows_that_are_in_no_rollup_are_not_pruned(engine: AsyncEngine) -> None:
    """Their sums stand nowhere else: the error says how to add them first."""
    at = NOW - 5 * DAY_S
    await Repository(engine).write(
        [settlement("r1", started_at=at, charges=(charge("r1", at=at),))]
    )
    async with engine.begin() as connection:
        await connection.execute(delete(rollups))
        await state.write(connection, "rollups_from", round(NOW * 1e6))
    with pytest.raises(ReportError, match="--rebuild"):
        await prune(engine, retention_days=2, now=NOW)
    assert (await _count(engine))[0] == 1
    async with engine.begin() as connection:
        await check.rebuild_rollups(connection)
    assert await prune(engine, retention_days=2, now=NOW) == 1


async def test_a_gateway_prunes_by_itself(engine: AsyncEngine, settings: Settings) -> None:
    """With retention_days set, its writer removes old rows once it runs."""
    now = time.time()
    rows = [settlement("new", started_at=now), settlement("old", started_at=now - 90 * DAY_S)]
    rows = [
        msgspec.structs.replace(
            one, charges=(charge(one.request.request_id, at=one.request.started_at),)
        )
        for one in rows
    ]
    await Repository(engine).write(rows)
    database = msgspec.structs.replace(settings.database, retention_days=30)
    ledger = Ledger(msgspec.structs.replace(settings, database=database), engine)
    await ledger.start()
    for _ in range(200):
        if await _count(engine) == (1, 1):
            break
        await asyncio.sleep(0.02)
    assert await _count(engine) == (1, 1)
    await ledger.aclose()
