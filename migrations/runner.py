"""Bring a database to the newest schema: one process at a time, whoever starts first.

SQLite is guarded by a lock file beside the database, PostgreSQL by an advisory lock.
"""

import asyncio
import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

_T = TypeVar("_T")
FOLDER = Path(__file__).resolve().parent
_ADVISORY_LOCK = 4_867_165_321
"""Any number, as long as all versions of this code use the same."""


def upgrade(database_url: str, revision: str = "head") -> str:
    """Migrate up to `revision`; also callable where an event loop runs. Returns the revision now.

    Raises:
        SQLAlchemyError, OSError: the database cannot be reached or refuses.
        CommandError: the database knows a revision that this installation does not.
    """

    def run(connection: "Connection") -> str:
        found = _current(connection)
        if revision != "head" or found != head():
            from alembic import command

            _check_known(found)
            command.upgrade(_config(connection), revision)
        return _current(connection) or ""

    return _with_database(database_url, run)


def downgrade(database_url: str, revision: str) -> str:
    """Migrate down to `revision` (`base`: nothing is left). Returns the revision now."""

    def run(connection: "Connection") -> str:
        from alembic import command

        command.downgrade(_config(connection), revision)
        return _current(connection) or ""

    return _with_database(database_url, run)


def current(database_url: str) -> str | None:
    """The database's revision; None: empty."""
    return _with_database(database_url, _current, alone=False)


def differences(database_url: str) -> list[str]:
    """What the ledger's tables lack or have beyond the code's, one line each; empty: equal.

    Other tables are not looked at: who keeps something beside the ledger still has it checked.
    """

    def run(connection: "Connection") -> list[str]:
        from alembic.autogenerate import compare_metadata
        from alembic.runtime.migration import MigrationContext

        from gateway.ledger.tables import metadata

        def ours(name: str | None, kind: str, _: Any) -> bool:
            return kind != "table" or name in metadata.tables

        context = MigrationContext.configure(connection, opts={"include_name": ours})
        return [_told(found) for found in compare_metadata(context, metadata)]

    return _with_database(database_url, run)


def _told(found: Any) -> str:
    """One of Alembic's differences in words; the changes of one column come as a list."""
    if isinstance(found, list):
        return "; ".join(map(_told, found))
    match found:
        case ("add_table", table):
            return f"table {table.name!r} is missing"
        case ("add_column" | "remove_column" as what, _, table, column):
            how = "is missing" if what == "add_column" else "is not of this version"
            return f"column {column.name!r} of table {table!r} {how}"
        case ("add_index" | "remove_index" as what, index):
            how = "is missing" if what == "add_index" else "is not of this version"
            return f"index {index.name!r} of table {index.table.name!r} {how}"
        case _:
            return str(found)


def head() -> str:
    """The newest revision of this installation."""
    from alembic.script import ScriptDirectory

    found = ScriptDirectory.from_config(_config()).get_current_head()
    assert found is not None, "the package has migrations"
    return found


def _check_known(revision: str | None) -> None:
    """Raises CommandError where a newer installation has upgraded the database."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    known = {one.revision for one in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise CommandError(
            f"its schema {revision!r} is of a newer Headgate than this one, which knows up to "
            f"{head()!r}; run that one, or restore a backup"
        )


def _current(connection: "Connection") -> str | None:
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def _config(connection: "Connection | None" = None) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(year)d-%%(month).2d-%%(day).2d_%%(slug)s_%%(rev)s")
    config.attributes["connection"] = connection
    return config


def _with_database(
    database_url: str, run: Callable[["Connection"], _T], *, alone: bool = True
) -> _T:
    """Run `run` on a loop of its own; alone: while nobody else migrates."""
    on = _guarded if alone else _plain
    result: list[_T] = []
    problem: list[BaseException] = []

    def work() -> None:
        try:
            result.append(asyncio.run(on(database_url, run)))
        except BaseException as error:
            problem.append(error)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        work()
    else:
        thread = threading.Thread(target=work, name="migrate")
        thread.start()
        thread.join()
    if problem:
        raise problem[0]
    return result[0]


async def _plain(database_url: str, run: Callable[["Connection"], _T]) -> _T:
    from gateway.ledger.database import open_engine

    engine = open_engine(database_url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(run)
    finally:
        await engine.dispose()


async def _guarded(database_url: str, run: Callable[["Connection"], _T]) -> _T:
    from gateway.ledger.database import open_engine

    engine = open_engine(database_url, patient=True)
    try:
        with _file_lock(engine):
            async with engine.connect() as connection:
                if engine.dialect.name == "postgresql":
                    await connection.exec_driver_sql(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})")
                    await connection.commit()
                try:
                    result = await connection.run_sync(run)
                    await connection.commit()
                    return result
                finally:
                    if engine.dialect.name == "postgresql":
                        await connection.rollback()
                        await connection.exec_driver_sql(
                            f"SELECT pg_advisory_unlock({_ADVISORY_LOCK})"
                        )
                        await connection.commit()
    finally:
        await engine.dispose()


@contextmanager
def _file_lock(engine: "AsyncEngine") -> Iterator[None]:
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path or path == ":memory:":
        yield
        return
    with Path(f"{path}.migrate.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
