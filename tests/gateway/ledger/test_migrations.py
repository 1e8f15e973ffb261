"""The schema goes up and down with data in place, once, whoever starts first."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, bindparam, func, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.ledger import check, state
from gateway.ledger.database import open_engine
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.rollups import DAY_S, DAY_US, HALF_PAST_S, HALF_S, MONTH_S
from gateway.ledger.tables import metadata, requests, rollup_details, rollups
from gateway.settings import Settings
from migrations import runner
from tests.gateway.ledger.conftest import Postgres
from tests.gateway.ledger.samples import NOW, charge, settlement


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return server.empty()
    return f"sqlite+aiosqlite:///{tmp_path / 'new' / 'headgate.db'}"


async def test_migrated_schema_is_the_code_s(empty_url: str) -> None:
    """After an upgrade, also inside a running event loop, nothing differs from tables.py."""
    assert runner.current(empty_url) is None
    assert runner.upgrade(empty_url) == runner.head()
    assert runner.differences(empty_url) == []
    assert runner.upgrade(empty_url) == runner.head(), "again changes nothing"


async def test_up_and_down_with_data_in_place(empty_url: str) -> None:
    """Every revision goes down and up again while rows are there; what stays keeps its rows."""
    runner.upgrade(empty_url)
    engine = open_engine(empty_url)
    await Repository(engine).write([settlement(f"r{index}") for index in range(20)])
    async with engine.connect() as connection:
        count = (await connection.execute(select(func.count()).select_from(requests))).scalar_one()
    assert count == 20
    await engine.dispose()
    assert runner.downgrade(empty_url, "base") == ""
    assert await _tables(empty_url) == {"alembic_version"}
    assert runner.upgrade(empty_url) == runner.head()
    assert set(metadata.tables) <= await _tables(empty_url)
    assert runner.differences(empty_url) == []


async def test_rows_of_the_first_version_keep_their_names_and_sums(empty_url: str) -> None:
    """Up from 0001 with data: ids in place of names, reports the same; down: the names again."""
    runner.upgrade(empty_url, "0001")
    engine = open_engine(empty_url)
    old = [
        settlement(f"r{n}", team=f"team {n % 2}", user=None if n == 0 else "ann") for n in range(4)
    ]
    async with engine.begin() as connection:
        for one in old:
            await connection.execute(_insert_0001("requests", _REQUEST_0001, one.request))
            await connection.execute(_insert_0001("charges", _CHARGE_0001, one.charges[0]))
    runner.upgrade(empty_url)
    asked = {"group_by": "team,user", "now": datetime(2026, 11, 22, tzinfo=UTC)}
    found = await costs_report(engine, Settings(), **asked)
    assert {(r["team"], r["user"], r["requests"], r["cost_usd"]) for r in found["rows"]} == {
        ("team 0", None, 1, "0.000001"),
        ("team 0", "ann", 1, "0.000001"),
        ("team 1", "ann", 2, "0.000002"),
    }
    await Repository(engine).write([settlement("new", team="team 1", started_at=NOW + 3_600)])
    async with engine.begin() as connection:
        teams = set((await connection.execute(select(requests.c.team))).scalars())
        assert all(len(team) == 32 for team in teams)
        assert len(teams) == 2
        assert await check.rollup_problems(connection) == []
        await check.rebuild_rollups(connection)
        assert await check.rollup_problems(connection) == []
    await engine.dispose()
    runner.downgrade(empty_url, "0001")
    engine = open_engine(empty_url)
    async with engine.connect() as connection:
        rows = await connection.execute(text('SELECT team, "user" FROM requests'))
        assert {tuple(row) for row in rows} == {
            ("team 0", None),
            ("team 0", "ann"),
            ("team 1", "ann"),
        }
    await engine.dispose()
    assert runner.upgrade(empty_url) == runner.head()


async def test_hours_from_half_past_are_added_up_from_the_quarters(empty_url: str) -> None:
    """Down and up again: the roll-ups are still the rows' sums."""
    runner.upgrade(empty_url)
    engine = open_engine(empty_url)
    at = [settlement(f"r{n}", started_at=NOW + 700 * n) for n in range(9)]
    await Repository(engine).write(at)
    await engine.dispose()
    assert runner.downgrade(empty_url, "0010") == "0010"
    assert runner.upgrade(empty_url) == runner.head()
    engine = open_engine(empty_url)
    async with engine.connect() as connection:
        half_past = select(func.count()).where(rollups.c.span_s == HALF_PAST_S)
        assert (await connection.execute(half_past)).scalar_one() > 1
        assert await check.rollup_problems(connection) == []
    await engine.dispose()


async def test_rows_before_the_details_are_read_one_by_one(empty_url: str) -> None:
    """Up from 0014 with data: reports by user and tag the same before, after and when rebuilt."""
    runner.upgrade(empty_url)
    engine = open_engine(empty_url)
    await Repository(engine).write(
        [settlement(f"r{n}", user=None if n else "ann", tags={"env": str(n)}) for n in range(3)]
    )
    await engine.dispose()
    assert runner.downgrade(empty_url, "0014") == "0014"
    assert runner.upgrade(empty_url) == runner.head()
    engine = open_engine(empty_url)
    later = [settlement(f"s{n}", started_at=NOW + 86_400 * n) for n in range(1, 3)]
    late = settlement("r0", charges=(charge("r0"), charge("r0", 1, at=NOW + 86_400)))
    await Repository(engine).write([*later, late])
    asked = {"group_by": "user", "filters": {"tag:env": ["prod", "0"]}}
    whole = {"group_by": "tag:env", "now": datetime(2026, 12, 1, tzinfo=UTC)}
    found = await costs_report(engine, Settings(), **whole)
    assert {row["tag:env"]: row["requests"] for row in found["rows"]} == {
        "0": 1, "1": 1, "2": 1, "prod": 2
    }  # fmt: skip
    both = await costs_report(engine, Settings(), now=whole["now"], **asked)
    async with engine.begin() as connection:
        assert await check.rollup_problems(connection) == []
        assert await state.read(connection, "details_from") == (int(NOW) // 86_400 + 1) * DAY_US
        await check.rebuild_rollups(connection)
        assert await check.rollup_problems(connection) == []
        assert await state.read(connection, "details_from") == 0
        days = select(rollup_details.c.bucket_us).where(rollup_details.c.span_s == DAY_S)
        assert len((await connection.execute(days.distinct())).all()) == 3
    assert await costs_report(engine, Settings(), **whole) == found
    assert await costs_report(engine, Settings(), now=whole["now"], **asked) == both
    await engine.dispose()


async def test_days_before_the_half_hours_are_put_right_by_their_rows(empty_url: str) -> None:
    """Up from 0015 with data: the days' sums stay, parts of them are the same before and after."""
    runner.upgrade(empty_url)
    engine = open_engine(empty_url)
    rows = [
        settlement(f"r{n}", user=None if n % 3 else "ann", tags={"env": str(n % 2)},
                   started_at=NOW + 7_000 * n, charges=(charge(f"r{n}", at=NOW + 7_001 * n),))
        for n in range(20)
    ]  # fmt: skip
    await Repository(engine).write(rows)
    now = datetime(2026, 12, 1, tzinfo=UTC)
    questions: list[dict[str, Any]] = [
        {"group_by": "day,user", "tz": "Asia/Kolkata"},
        {"group_by": "hour", "filters": {"tag:env": ["1"]}},
        {"group_by": "tag:env", "since": "2026-11-21T15:20:00Z"},
    ]
    before = [await costs_report(engine, Settings(), now=now, **asked) for asked in questions]
    await engine.dispose()
    for _ in range(2):
        assert runner.downgrade(empty_url, "0015") == "0015"
        assert runner.upgrade(empty_url) == runner.head()
        assert runner.differences(empty_url) == []
    engine = open_engine(empty_url)
    async with engine.begin() as connection:
        assert await check.rollup_problems(connection) == []
        assert await state.read(connection, "half_hours_from") == (int(NOW) // DAY_S + 3) * DAY_US
        halves = select(func.count()).where(rollup_details.c.span_s == HALF_S)
        assert (await connection.execute(halves)).scalar_one() == 0
    for asked, answer in zip(questions, before, strict=True):
        assert await costs_report(engine, Settings(), now=now, **asked) == answer
    async with engine.begin() as connection:
        await check.rebuild_rollups(connection)
        assert await check.rollup_problems(connection) == []
        assert await state.read(connection, "half_hours_from") == 0
        assert (await connection.execute(halves)).scalar_one() > 20
    for asked, answer in zip(questions, before, strict=True):
        assert await costs_report(engine, Settings(), now=now, **asked) == answer
    await engine.dispose()


async def test_months_are_added_up_from_their_days(empty_url: str) -> None:
    """Up from 0016 with data: each month's sets, as they were written before."""
    runner.upgrade(empty_url)
    engine = open_engine(empty_url)
    rows = [settlement(f"r{n}", started_at=NOW + 500_000 * n) for n in range(9)]
    await Repository(engine).write(rows)
    c = rollup_details.c
    months = select(rollup_details).where(c.span_s == MONTH_S).order_by(c.bucket_us, c.key_id)
    async with engine.connect() as connection:
        before = (await connection.execute(months)).all()
    await engine.dispose()
    assert len({row.bucket_us for row in before}) == 3
    assert runner.downgrade(empty_url, "0016") == "0016"
    assert runner.upgrade(empty_url) == runner.head()
    engine = open_engine(empty_url)
    async with engine.connect() as connection:
        assert (await connection.execute(months)).all() == before
        assert await check.rollup_problems(connection) == []
    await engine.dispose()


_REQUEST_0001 = (
    "request_id", "endpoint", "model", "team", "key", "user", "duration_ms", "stream", "outcome",
    "status", "cache", "policy", "rule", "task", "backend", "prompt_tokens", "draw", "probability",
)  # fmt: skip
_CHARGE_0001 = (
    "request_id", "seq", "kind", "backend", "machine", "machine_type", "prompt_tokens",
    "completion_tokens", "cost_nano_usd",
)  # fmt: skip


def _insert_0001(table: str, columns: tuple[str, ...], row: Any) -> Any:
    """A row as the first version wrote it."""
    documents: dict[str, Any] = {"unit_prices": {}}
    time_column = "at_us"
    if table == "requests":
        documents = {"tags": {}, "candidates": [], "attempts": [], "reasons": []}
        time_column = "started_us"
    values = {**{name: getattr(row, name) for name in columns}, time_column: round(NOW * 1e6)}
    names = [*values, *documents]
    columns_text = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join(f":{name}" for name in names)
    statement = text(f"INSERT INTO {table} ({columns_text}) VALUES ({marks})")
    typed = [bindparam(name, value, type_=JSON) for name, value in documents.items()]
    return statement.bindparams(*typed, **values)


async def _tables(url: str) -> set[str]:
    engine = open_engine(url)
    try:
        async with engine.connect() as connection:
            return await _names(connection)
    finally:
        await engine.dispose()


async def _names(connection: AsyncConnection) -> set[str]:
    def read(sync: Any) -> set[str]:
        return set(inspect(sync).get_table_names())

    return await connection.run_sync(read)


def test_processes_that_migrate_at_once_do_not_collide(empty_url: str) -> None:
    """Three processes start on an empty database: all succeed, the schema is there once."""
    code = "import sys; from migrations import upgrade; print(upgrade(sys.argv[1]))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for process in started:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
        assert out.decode().strip() == runner.head()
    assert runner.differences(empty_url) == []


def test_upgrade_of_a_current_sqlite_database_changes_nothing(tmp_path: Path) -> None:
    """`headgate serve` upgrades at every start: of a current database it only looks."""
    file = tmp_path / "headgate.db"
    url = f"sqlite+aiosqlite:///{file}"
    runner.upgrade(url)
    before = file.read_bytes()
    assert runner.upgrade(url) == runner.head()
    assert file.read_bytes() == before
