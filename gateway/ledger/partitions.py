"""Months of `requests` and `charges` as partitions on PostgreSQL: `headgate db partition`.

Retention then drops a month's tables instead of deleting its rows. The partition key is the
request's id: ids of ours begin with their time, so a range of ids is a month, ids stay unique over
all months, a request and its charges lie in tables of one month, and an id leads to one of them.
Everything else is in the default partition `…_rest`: ids that clients chose, and whatever was there
before. There retention deletes rows as it does everywhere.

A month's partition begins before the month does, and holds no row at that time but for what clients
called so.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct
from sqlalchemy import ColumnElement, NullPool, Table, or_, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateIndex

from gateway.ledger.tables import charges, feedback, requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

TABLES = (requests, charges)
"""In the order in which writers take them."""
LOCK = 4_867_165_324
"""Of who removes rows or makes partitions."""
_PATIENCE = "SET LOCAL lock_timeout = '2s'"
"""Who waits for a table that is to change makes all others wait; an hour later is early enough."""
_MONTHS = """
SELECT right(part.relname, 7) FROM pg_inherits JOIN pg_class part ON part.oid = inhrelid
WHERE inhparent = 'requests'::regclass AND part.relname ~ '^requests_[0-9]{4}_[0-9]{2}$' ORDER BY 1
"""


class Month(Struct, frozen=True, order=True):
    """A month of UTC."""

    year: int
    number: int

    @classmethod
    def of(cls, at: float) -> "Month":
        """That of a moment, unix seconds."""
        moment = datetime.fromtimestamp(at, UTC)
        return cls(moment.year, moment.month)

    @property
    def after(self) -> "Month":
        return Month(self.year + self.number // 12, self.number % 12 + 1)

    @property
    def start_us(self) -> int:
        """Unix microseconds."""
        return int(datetime(self.year, self.number, 1, tzinfo=UTC).timestamp()) * 1_000_000

    @property
    def first_id(self) -> str:
        """Not after any id that was made in it, and after all that were made before."""
        return f"{self.start_us // 1000:012x}"

    def part(self, table: Table) -> str:
        return f"{table.name}_{self.year:04}_{self.number:02}"


async def partitioned(connection: "AsyncConnection") -> bool:
    """Whether the ledger's rows lie in partitions. Only of PostgreSQL."""
    kind = text("SELECT relkind = 'p' FROM pg_class WHERE oid = 'requests'::regclass")
    return bool((await connection.execute(kind)).scalar())


async def months(connection: "AsyncConnection") -> list[Month]:
    """Those that have partitions; there is no gap between them."""
    if connection.dialect.name != "postgresql":
        return []
    found = (await connection.execute(text(_MONTHS))).scalars()
    return [Month(int(name[:4]), int(name[5:])) for name in found]


def in_no_month(listed: list[Month]) -> ColumnElement[bool]:
    """Requests that are in the default partition."""
    c = requests.c.request_id
    return or_(c < listed[0].first_id, c >= listed[-1].after.first_id)


async def begin(connection: "AsyncConnection", *, now: float) -> None:
    """Make both tables the default partitions of new ones; no row moves. The next months follow.

    Raises:
        DBAPIError: somebody works with the tables for longer than two seconds.
    """
    await _hold(connection, "ACCESS EXCLUSIVE")
    for table in TABLES:
        rest = await _anew(connection, table, "rest", f"PARTITION BY RANGE ({_KEY})")
        await _run(connection, f"ALTER TABLE {table.name} ATTACH PARTITION {rest} DEFAULT")
    await _add(connection, now)


async def end(connection: "AsyncConnection") -> None:
    """Copy all rows into tables without partitions. Raises DBAPIError as `begin`."""
    await _hold(connection, "ACCESS EXCLUSIVE")
    for table in TABLES:
        parts = await _anew(connection, table, "parts", "")
        await _run(connection, f"INSERT INTO {table.name} SELECT * FROM {parts}")
        await _run(connection, f"DROP TABLE {parts}")


async def look_ahead(engine: "AsyncEngine", *, now: float) -> None:
    """Make the partitions of the next months, where there are partitions at all.

    Raises:
        DBAPIError: as `begin`.
    """
    if engine.dialect.name != "postgresql":
        return
    async with engine.connect() as connection:
        there = not await partitioned(connection) or _last(now) in await months(connection)
    if there:
        return
    async with patient(engine) as connection:
        if await mine(connection):
            await _hold(connection, "SHARE ROW EXCLUSIVE")
            await _add(connection, now)


@asynccontextmanager
async def patient(engine: "AsyncEngine") -> AsyncIterator["AsyncConnection"]:
    """A transaction whose statements may take as long as they do: a new partition reads all of the
    default one, to see that none of its rows belongs in it."""
    slow = create_async_engine(engine.url, poolclass=NullPool)
    try:
        async with slow.begin() as connection:
            yield connection
    finally:
        await slow.dispose()


async def drop(connection: "AsyncConnection", month: Month, *, until_us: int) -> int:
    """Remove a month's partitions with their rows; how many requests went.

    Those that are not that old after all, or have charges that are not, move to the default one.

    Raises:
        DBAPIError: as `begin`.
    """
    await _hold(connection, "ACCESS EXCLUSIVE")
    old, work = (month.part(table) for table in TABLES)
    for table in TABLES:
        await _run(connection, f"ALTER TABLE {table.name} DETACH PARTITION {month.part(table)}")
    kept = (
        f"SELECT {_KEY} FROM {old} WHERE started_us >= {until_us} "
        f"UNION SELECT {_KEY} FROM {work} WHERE at_us >= {until_us}"
    )
    for part, table in ((work, charges), (old, requests)):
        await _run(
            connection, f"INSERT INTO {table.name} SELECT * FROM {part} WHERE {_KEY} IN ({kept})"
        )
    gone = f"FROM {old} WHERE {_KEY} NOT IN ({kept})"
    await _run(connection, f"DELETE FROM {feedback.name} WHERE {_KEY} IN (SELECT {_KEY} {gone})")
    count = (await connection.execute(text(f"SELECT count(*) {gone}"))).scalar_one()
    await _run(connection, f"DROP TABLE {old}, {work}")
    return int(count)


async def mine(connection: "AsyncConnection") -> bool:
    """Whether nobody else removes rows or makes partitions until this transaction ends."""
    found = await connection.execute(text(f"SELECT pg_try_advisory_xact_lock({LOCK})"))
    return bool(found.scalar_one())


def _last(now: float) -> Month:
    """The month up to which there should be partitions."""
    return Month.of(now).after.after


async def _add(connection: "AsyncConnection", now: float) -> None:
    listed = await months(connection)
    month = listed[-1].after if listed else Month.of(now).after
    while month <= _last(now):
        for table in TABLES:
            await _add_part(connection, table, month)
        month = month.after


async def _add_part(connection: "AsyncConnection", table: Table, month: Month) -> None:
    part, begins, ends = month.part(table), month.first_id, month.after.first_id
    await _run(connection, f"CREATE TABLE {part} (LIKE {table.name} INCLUDING ALL)")
    await _run(
        connection,
        f"WITH moved AS (DELETE FROM {table.name}_rest WHERE {_KEY} >= '{begins}' "
        f"AND {_KEY} < '{ends}' RETURNING *) INSERT INTO {part} SELECT * FROM moved",
    )
    bounds = f"FOR VALUES FROM ('{begins}') TO ('{ends}')"
    await _run(connection, f"ALTER TABLE {table.name} ATTACH PARTITION {part} {bounds}")


async def _anew(connection: "AsyncConnection", table: Table, suffix: str, how: str) -> str:
    """Rename a table and make an empty one in its place; the old one's new name."""
    old = f"{table.name}_{suffix}"
    key = table.primary_key
    await _run(connection, f"ALTER TABLE {table.name} RENAME TO {old}")
    await _run(connection, f"ALTER TABLE {old} RENAME CONSTRAINT {key.name} TO {key.name}_{suffix}")
    for index in table.indexes:
        await _run(connection, f"ALTER INDEX {index.name} RENAME TO {index.name}_{suffix}")
    await _run(connection, f"CREATE TABLE {table.name} (LIKE {old} INCLUDING DEFAULTS) {how}")
    columns = ", ".join(column.name for column in key)
    await _run(
        connection, f"ALTER TABLE {table.name} ADD CONSTRAINT {key.name} PRIMARY KEY ({columns})"
    )
    for index in table.indexes:
        await connection.execute(CreateIndex(index))
    return old


async def _hold(connection: "AsyncConnection", mode: str) -> None:
    await _run(connection, _PATIENCE)
    await _run(connection, f"LOCK TABLE {', '.join(table.name for table in TABLES)} IN {mode} MODE")


async def _run(connection: "AsyncConnection", sql: str) -> None:
    """Names in it are ours, bounds are numbers."""
    await connection.execute(text(sql))


_KEY = requests.c.request_id.name
