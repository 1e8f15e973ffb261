"""Opening the ledger's database: one engine per process, SQLite tuned for one writer."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Insert, Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

BUSY_TIMEOUT_MS = 10_000
"""How long SQLite waits for another process's transaction."""


def open_engine(database_url: str, *, patient: bool = False) -> "AsyncEngine":
    """An async engine for `database_url`; nothing is connected yet.

    SQLite: WAL (readers never wait for the writer), synchronous = NORMAL (a power cut may lose the
    last commits, which the journal still has), a busy timeout, and its folder made if missing.
    Errors show their statement without its parameters: these name customers, and errors are logged.

    Args:
        patient: PostgreSQL's statements may take as long as they do, as migrations and `VACUUM`
            must; else 30 s.
    """
    from sqlalchemy import event, make_url
    from sqlalchemy.ext.asyncio import create_async_engine

    from gateway.ledger.sqlite_engine import SqliteEngine

    url = make_url(database_url)
    if url.get_backend_name() != "sqlite":
        return create_async_engine(
            url,
            pool_size=4,
            max_overflow=4,
            pool_timeout=5,
            pool_pre_ping=True,
            connect_args={"timeout": 5, "command_timeout": None if patient else 30},
            hide_parameters=True,
        )
    if url.database and url.database != ":memory:":
        _private_folder(Path(url.database).parent)
    made = create_async_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, hide_parameters=True
    )
    engine = SqliteEngine(made.sync_engine)

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.close()

    return engine


def _private_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)


@asynccontextmanager
async def writing(engine: "AsyncEngine") -> AsyncIterator["AsyncConnection"]:
    """A transaction that writes to the ledger, committed at the end.

    SQLite: it waits for other writers at once, not in its middle, for those of this process in the
    order in which they came, and is on disk when it is over. Never within another one.
    """
    from gateway.ledger.direct import begin_sqlite
    from gateway.ledger.sqlite_engine import SqliteEngine

    turn = engine.turn if isinstance(engine, SqliteEngine) else nullcontext()
    async with turn, engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            await begin_sqlite(connection)
        yield connection
        await connection.commit()


def without_password(database_url: str) -> str:
    """The URL as it may be shown."""
    from sqlalchemy import make_url

    return make_url(database_url).render_as_string(hide_password=True)


def insert_once(dialect: str, table: "Table") -> "Insert":
    """INSERT … ON CONFLICT DO NOTHING for `dialect` (sqlite or postgresql)."""
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table).on_conflict_do_nothing()


def inserting_once(engine: "AsyncEngine", table: "Table", columns: Sequence[str]) -> str:
    """The driver's own INSERT … ON CONFLICT DO NOTHING, compiled once for all batches."""
    statement = insert_once(engine.dialect.name, table)
    compiled = statement.compile(dialect=engine.dialect, column_keys=list(columns))
    assert compiled.positiontup is not None
    assert compiled.positiontup == list(columns), "the rows' order is the statement's order"
    return str(compiled)


def now_us(dialect: str) -> "ColumnElement[int]":
    """The database's own clock as an SQL expression, unix microseconds."""
    from sqlalchemy import BigInteger, cast, func

    if dialect == "postgresql":
        return cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)
    return cast((func.julianday("now") - 2_440_587.5) * 86_400_000_000, BigInteger)


def upsert(dialect: str, table: "Table", values: Mapping[str, Any]) -> "Insert":
    """INSERT one row, or set its values where the primary key is there already."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    keys = [column.name for column in table.primary_key]
    changed = {name: value for name, value in values.items() if name not in keys}
    statement = insert(table).values(**values)
    return statement.on_conflict_do_update(index_elements=keys, set_=changed)


def upsert_adding(engine: "AsyncEngine", table: "Table", sums: Sequence[str]) -> str:
    """The driver's own INSERT … ON CONFLICT: where the key is there, add to its sums."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    columns = list(table.c.keys())
    added = statement.on_conflict_do_update(
        index_elements=[column.name for column in table.primary_key],
        set_={name: table.c[name] + statement.excluded[name] for name in sums},
    )
    compiled = added.compile(dialect=engine.dialect, column_keys=columns)
    assert compiled.positiontup is not None
    assert list(compiled.positiontup) == columns, "the rows' order is the statement's order"
    return str(compiled)
