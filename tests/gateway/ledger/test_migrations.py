"""The schema goes up and down with data in place, once, whoever starts first."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, inspect, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.ledger.database import open_engine
from gateway.ledger.repository import Repository
from gateway.ledger.tables import metadata, requests
from migrations import runner
from tests.gateway.ledger.conftest import Postgres
from tests.gateway.ledger.samples import settlement


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


def test_upgrade_of_a_current_sqlite_database_is_quick(tmp_path: Path) -> None:
    """`headgate serve` upgrades at every start, so looking must take next to no time."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'headgate.db'}"
    runner.upgrade(url)
    began = time.process_time()
    runner.upgrade(url)
    assert time.process_time() - began < 0.5
