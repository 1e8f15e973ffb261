"""Statements straight to the driver, for the one transaction that every batch of rows is.

SQLAlchemy's layers cost more than the statements themselves there, and with SQLite each step of a
cursor is a trip to another thread. The SQL is the driver's own (`?` or `$1`).
"""

import re
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Rows = Sequence[tuple[Any, ...]]
_ROWS_AT_ONCE = 64


class Direct(Protocol):
    """Raises SQLAlchemyError as the connection itself would."""

    async def fetch(self, sql: str, params: tuple[Any, ...]) -> Rows:
        """All rows of a query."""
        ...

    async def many(self, sql: str, rows: Rows) -> None:
        """Run a statement once per row."""
        ...


class _Sqlite:
    """SQLite's driver takes and drops the interpreter's lock for each row of an executemany. Beside
    a busy event loop that costs more than the insert itself, so rows go in statements of many."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        """An aiosqlite.Connection."""

    async def fetch(self, sql: str, params: tuple[Any, ...]) -> Rows:
        try:
            rows: Rows = await self._driver.execute_fetchall(sql, params)
        except sqlite3.Error as error:
            raise _wrapped(sql, error) from error
        return rows

    async def many(self, sql: str, rows: Rows) -> None:
        whole = len(rows) - len(rows) % _ROWS_AT_ONCE
        try:
            for start in range(0, whole, _ROWS_AT_ONCE):
                values = tuple(chain.from_iterable(rows[start : start + _ROWS_AT_ONCE]))
                await self._driver.execute(_many_rows(sql), values)
            if whole < len(rows):
                await self._driver.executemany(sql, rows[whole:])
        except sqlite3.Error as error:
            raise _wrapped(sql, error) from error


@lru_cache(maxsize=16)
def _many_rows(statement: str) -> str:
    """The INSERT of one row as an INSERT of many."""
    head, values, tail = re.split(r"(\((?:\?, )*\?\))", statement, maxsplit=1)
    return head + ", ".join([values] * _ROWS_AT_ONCE) + tail


def _wrapped(sql: str, error: sqlite3.Error) -> BaseException:
    return DBAPIError.instance(sql, None, error, sqlite3.Error)


class _Other:
    def __init__(self, connection: "AsyncConnection") -> None:
        self._connection = connection

    async def fetch(self, sql: str, params: tuple[Any, ...]) -> Rows:
        found = await self._connection.exec_driver_sql(sql, params)
        return [tuple(row) for row in found]

    async def many(self, sql: str, rows: Rows) -> None:
        await self._connection.exec_driver_sql(sql, list(rows))


async def direct(connection: "AsyncConnection") -> Direct:
    """The connection's driver; statements are part of the connection's transaction."""
    if connection.dialect.name != "sqlite":
        return _Other(connection)
    return _Sqlite((await connection.get_raw_connection()).driver_connection)


async def begin_sqlite(connection: "AsyncConnection") -> None:
    """Begin a transaction that has the write lock from its start and is on disk at its end."""
    raw = await connection.get_raw_connection()
    await connection.begin()
    driver: Any = raw.driver_connection
    try:
        if not raw.info.get("synchronous_full"):
            await driver.execute("PRAGMA synchronous=FULL")
            raw.info["synchronous_full"] = True
        await driver.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        raise _wrapped("BEGIN IMMEDIATE", error) from error
