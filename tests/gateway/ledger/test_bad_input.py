"""What nobody should send and somebody will: it is stored as data, or refused by name."""

import io
import secrets
from datetime import UTC, datetime

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import check, export
from gateway.ledger.ledger import Ledger
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.tables import requests
from gateway.settings import Settings
from tests.gateway.ledger.samples import NOW, charge, settlement

SQL = "x'); DROP TABLE charges; --"
NOW_TIME = datetime(2026, 11, 22, tzinfo=UTC)


async def test_sql_in_every_name_is_a_name(engine: AsyncEngine) -> None:
    """Team, user, key, model, rule, tag and backend: grouped by, filtered by, exported."""
    hostile = settlement(
        SQL,
        team=SQL,
        user=SQL,
        key=SQL,
        model=SQL,
        rule=SQL,
        tags={"t": SQL},
        backend=SQL,
        charges=(charge(SQL, backend=SQL, machine=SQL, kind="answer"),),
    )
    await Repository(engine, chained=True).write([hostile, settlement("plain")])
    for keys in ("team", "user", "key,model", "rule,tag:t", "backend,machine"):
        found = await costs_report(engine, Settings(), group_by=keys, now=NOW_TIME)
        first = keys.split(",")[0]
        assert {row[first] for row in found["rows"]} >= {SQL}
        narrowed = {keys.split(",")[-1]: [SQL]}
        only = await costs_report(engine, Settings(), filters=narrowed, now=NOW_TIME)
        assert only["totals"]["requests"] == 1
    assert await Repository(engine).find(SQL) == hostile
    async with engine.connect() as connection:
        text = io.StringIO()
        assert await export.charges_csv(connection, text, since_us=0, until_us=2**62) == 2
        assert (await check.check_chain(connection)).problem is None
        assert await check.rollup_problems(connection) == []


async def test_a_ten_megabyte_tag_is_one_row_like_any_other(
    engine: AsyncEngine, settings: Settings
) -> None:
    """HTTP refuses tags beyond 64 bytes; should one come another way, nothing else suffers."""
    ledger = Ledger(settings, engine)
    await ledger.start()
    huge = settlement("huge", tags={"t": "é" * 5_000_000})
    ledger.settle(settlement("before"))
    ledger.settle(huge)
    ledger.settle(settlement("after"))
    assert await ledger.flush(30)
    assert await ledger.find("huge") == await Repository(engine).find("huge")
    async with engine.connect() as connection:
        ids = await connection.execute(select(requests.c.request_id))
        assert set(ids.scalars()) == {"before", "huge", "after"}
    assert ledger.state()["journal_bytes"] == 0
    await ledger.aclose()


async def test_user_longer_than_an_index_entry_holds_up_nobody(
    engine: AsyncEngine, settings: Settings
) -> None:
    """Two such users with the same beginning are booked as two."""
    ledger = Ledger(settings, engine)
    await ledger.start()
    long = secrets.token_hex(20_000)
    for name, user in (("r1", long), ("r2", long + "!"), ("r3", "ann")):
        ledger.settle(settlement(name, user=user))
    assert await ledger.flush()
    await ledger.aclose()
    found = [await Repository(engine).find(name) for name in ("r1", "r2", "r3")]
    users = [one.request.user or "" for one in found if one is not None]
    assert len(set(users)) == 3
    assert users[2] == "ann"
    assert max(map(len, users)) < 600


@pytest.mark.parametrize("hours", [-1, -26, -24 * 400])
async def test_a_clock_that_goes_backwards_loses_nothing(engine: AsyncEngine, hours: int) -> None:
    """Requests that end before they begin, or before the last ones, are in their own buckets."""
    back = NOW + hours * 3_600
    rows = [
        settlement("first"),
        settlement("back", started_at=back, duration_ms=-5.0, charges=(charge("back", at=back),)),
        settlement("ends before", charges=(charge("ends before", at=back),)),
    ]
    await Repository(engine).write(rows)
    found = await costs_report(engine, Settings(), group_by="hour,kind", now=NOW_TIME)
    assert sum(row["requests"] for row in found["rows"]) == 3
    assert found["totals"]["cost_usd"] == "0.000003"
    async with engine.connect() as connection:
        assert await check.rollup_problems(connection) == []


async def test_times_before_1970_and_far_ahead_are_rows_all_the_same(engine: AsyncEngine) -> None:
    """A broken clock is not the ledger's to judge; proper periods leave such rows out."""
    rows = [
        settlement(name, started_at=at, charges=(charge(name, at=at),))
        for name, at in (("past", -1e9), ("future", 9e10), ("now", NOW))
    ]
    await Repository(engine).write(rows)
    found = await costs_report(engine, Settings(), since="1970-01-01", now=NOW_TIME)
    assert found["totals"]["requests"] == 1
    by_day = await costs_report(engine, Settings(), group_by="day", now=NOW_TIME)
    assert [row["day"] for row in by_day["rows"]] == ["2026-11-21"]
    async with engine.connect() as connection:
        assert await check.rollup_problems(connection) == []
