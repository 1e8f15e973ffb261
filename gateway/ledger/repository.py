"""Requests and charges in SQL: batched idempotent inserts, and finding one request again.

A batch is one transaction: names become subject ids, rows that are not there yet are inserted, and
exactly those are added to the roll-ups and, if it is on, to the audit chain. Every statement takes
its rows in sorted order and the tables in the same order, so writers cannot deadlock.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain as chained
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import select, text

from gateway.ledger import chain, state, subjects
from gateway.ledger.database import insert_once, upsert_adding, writing
from gateway.ledger.records import ChargeRecord, Settlement
from gateway.ledger.rollups import SUMS, Bucket, Sums, add, by_span, key_id
from gateway.ledger.rows import (
    CHARGE_COLUMNS,
    REQUEST_COLUMNS,
    Row,
    charge_row,
    request_row,
    settlement_of,
    without_nul,
)
from gateway.ledger.subjects import Subject
from gateway.ledger.tables import charges, requests, rollup_keys, rollups

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_replace = msgspec.structs.replace
_OURS = text(
    "SELECT request_id FROM requests WHERE request_id = ANY(:ids) "
    "AND xmin = pg_current_xact_id()::xid"
)
"""Rows that this very transaction inserted; another may have been quicker with the same id."""
_KNOWN_POSTGRESQL = text("SELECT request_id FROM requests WHERE request_id = ANY(:ids)")
_KNOWN_SQLITE = text(
    "SELECT request_id FROM requests WHERE request_id IN (SELECT value FROM json_each(:ids))"
)
_SLICE = 256
"""Rows that are prepared in one go; the event loop waits meanwhile."""
_ROWS_AT_ONCE = 64
"""SQLite's driver takes and drops the interpreter's lock for each row of an executemany. Beside a
busy event loop that costs more than the insert itself, so a full batch goes in statements of many
rows each."""


class Repository:
    """The only writer and reader of `requests` and `charges` rows, one by one.

    Args:
        chained: write the audit chain.
    """

    def __init__(self, engine: "AsyncEngine", *, chained: bool = False) -> None:
        self._engine = engine
        self._chained = chained
        self._insert_request = _insert_once(engine, requests, REQUEST_COLUMNS)
        self._insert_charge = _insert_once(engine, charges, CHARGE_COLUMNS)
        self._insert_key = _insert_once(engine, rollup_keys, tuple(rollup_keys.c.keys()))
        self._add_rollup = upsert_adding(engine, rollups, SUMS)
        self._postgresql = engine.dialect.name == "postgresql"
        self._known = _KNOWN_POSTGRESQL if self._postgresql else _KNOWN_SQLITE

    async def write(self, settlements: Sequence[Settlement]) -> None:
        """Write all in one transaction; rows that are already there stay as they are.

        Raises:
            SQLAlchemyError: nothing was written.
        """
        if self._postgresql:
            settlements = [without_nul(one) if _has_nul(one) else one for one in settlements]
        async with writing(self._engine) as connection:
            await self.write_on(connection, settlements)

    async def write_on(
        self, connection: "AsyncConnection", settlements: Sequence[Settlement]
    ) -> None:
        """The same inside the caller's transaction, begun by `writing`."""
        closed_until_us = await state.closed_until_us(connection)
        merged = _merged(settlements)
        ids = await subjects.ids_of(connection, _names(merged))
        totals: dict[Bucket, Sums] = {}
        mine: set[str] = set()
        written: list[Settlement] = []
        for start in range(0, len(merged), _SLICE):  # between two, requests are answered
            batch = {
                one.request.request_id: _open_period(_pseudonymous(one, ids), closed_until_us)
                for one in merged[start : start + _SLICE]
            }
            inserted = await self._insert_requests(connection, batch)
            mine |= inserted
            fresh = [one for name, one in batch.items() if name in inserted]
            for one in fresh:
                add(totals, one)
            for name, one in batch.items():
                late = None if name in inserted else await self._late(connection, one, totals)
                if late is not None:
                    fresh.append(late)
            charge_rows = [charge_row(charge) for one in fresh for charge in one.charges]
            await self._insert(connection, self._insert_charge, charge_rows)
            written += fresh
        await self._roll_up(connection, totals)
        if self._chained and written:
            await chain.extend(connection, written, requests=mine)

    async def _insert_requests(
        self, connection: "AsyncConnection", batch: dict[str, Settlement]
    ) -> set[str]:
        """Insert what is missing; the ids of the rows that are now ours."""
        ids: Any = list(batch) if self._postgresql else msgspec.json.encode(list(batch)).decode()
        known = await connection.execute(self._known, {"ids": ids})
        missing = batch.keys() - set(known.scalars())
        if not missing:
            return missing
        rows = [request_row(one.request) for name, one in batch.items() if name in missing]
        await self._insert(connection, self._insert_request, rows)
        if not self._postgresql:
            return missing  # nobody else writes meanwhile
        return set((await connection.execute(_OURS, {"ids": list(missing)})).scalars())

    async def _insert(
        self, connection: "AsyncConnection", statement: str, rows: Sequence[Row]
    ) -> None:
        whole = 0 if self._postgresql else len(rows) - len(rows) % _ROWS_AT_ONCE
        for start in range(0, whole, _ROWS_AT_ONCE):
            values = tuple(chained.from_iterable(rows[start : start + _ROWS_AT_ONCE]))
            await connection.exec_driver_sql(_many_rows(statement, _ROWS_AT_ONCE), values)
        if whole < len(rows):
            await connection.exec_driver_sql(statement, list(rows[whole:]))

    async def _late(
        self, connection: "AsyncConnection", one: Settlement, totals: dict[Bucket, Sums]
    ) -> Settlement | None:
        """Charges that turn up after their request's row: a shadow's, a correction's."""
        before = await find_rows(connection, one.request.request_id, lock=True)
        assert before is not None, "somebody else inserted it, so it is there"
        known = {charge.seq for charge in before.charges}
        fresh = tuple(charge for charge in one.charges if charge.seq not in known)
        if not fresh:
            return None
        after = Settlement(request=before.request, charges=before.charges + fresh)
        add(totals, before, sign=-1)
        add(totals, after)
        return Settlement(request=before.request, charges=fresh)

    async def _roll_up(self, connection: "AsyncConnection", totals: dict[Bucket, Sums]) -> None:
        spans = by_span(totals)
        if not spans:
            return
        ids = {key: key_id(key) for _, _, key in spans}
        keys = sorted((number, *key) for key, number in ids.items())
        await connection.exec_driver_sql(self._insert_key, keys)
        rows = sorted((s, at, ids[key], *sums) for (s, at, key), sums in spans.items())
        await connection.exec_driver_sql(self._add_rollup, rows)

    async def find(self, request_id: str) -> Settlement | None:
        """A request with its charges, in the order of their seq."""
        async with self._engine.connect() as connection:
            return await find_settlement(connection, request_id)


async def find_settlement(
    connection: "AsyncConnection", request_id: str, *, lock: bool = False
) -> Settlement | None:
    """A request with its charges, under its team's and user's names, over an open connection."""
    found = await find_rows(connection, request_id, lock=lock)
    if found is None:
        return None
    request = found.request
    names = await subjects.names_of(connection, (i for i in (request.team, request.user) if i))
    team = subjects.shown(request.team, names) or ""
    return Settlement(
        request=_replace(request, team=team, user=subjects.shown(request.user, names)),
        charges=found.charges,
    )


async def find_rows(
    connection: "AsyncConnection", request_id: str, *, lock: bool = False
) -> Settlement | None:
    """A request with its charges as the tables hold them; `lock` keeps late charges in line."""
    wanted = select(*(requests.c[name] for name in REQUEST_COLUMNS)).where(
        requests.c.request_id == request_id
    )
    if lock and connection.dialect.name == "postgresql":
        wanted = wanted.with_for_update()
    found = (await connection.execute(wanted)).first()
    if found is None:
        return None
    booked = await connection.execute(
        select(*(charges.c[name] for name in CHARGE_COLUMNS))
        .where(charges.c.request_id == request_id)
        .order_by(charges.c.seq)
    )
    return settlement_of(found, booked.all())


def _merged(settlements: Iterable[Settlement]) -> list[Settlement]:
    """Sorted by request id: the first row of each, and every charge once."""
    merged: dict[str, Settlement] = {}
    for one in settlements:
        name = one.request.request_id
        first = merged.get(name)
        if first is None:
            merged[name] = one
            continue
        known = {charge.seq for charge in first.charges}
        fresh = tuple(charge for charge in one.charges if charge.seq not in known)
        merged[name] = Settlement(request=first.request, charges=first.charges + fresh)
    return [merged[name] for name in sorted(merged)]


def _names(settlements: Iterable[Settlement]) -> set[Subject]:
    names: set[Subject] = set()
    for one in settlements:
        names.add(("team", one.request.team))
        if one.request.user is not None:
            names.add(("user", one.request.user))
    return names


def _pseudonymous(one: Settlement, ids: Mapping[Subject, str]) -> Settlement:
    """With subject ids in place of names."""
    team, user = one.request.team, one.request.user
    request = _replace(
        one.request,
        team=ids["team", team],
        user=None if user is None else ids["user", user],
    )
    return Settlement(request=request, charges=one.charges)


def _open_period(one: Settlement, closed_until_us: int) -> Settlement:
    """Charges of a closed month post to the first moment after it."""
    first = closed_until_us / 1_000_000
    if not first or all(charge.at >= first for charge in one.charges):
        return one
    moved: tuple[ChargeRecord, ...] = tuple(
        charge if charge.at >= first else _replace(charge, at=first) for charge in one.charges
    )
    return Settlement(request=one.request, charges=moved)


@lru_cache(maxsize=8)
def _many_rows(statement: str, rows: int) -> str:
    """The INSERT of one row as an INSERT of many."""
    head, values, tail = re.split(r"(\((?:\?, )*\?\))", statement)
    return head + ", ".join([values] * rows) + tail


def _has_nul(settlement: Settlement) -> bool:
    request = settlement.request
    texts: list[Any] = [
        request.request_id,
        request.model,
        request.team,
        request.user,
        request.error_code,
        request.backend_model,
        *request.tags,
        *request.tags.values(),
        *(attempt.error for attempt in request.attempts),
        *(why for _, _, why in request.reasons),
    ]
    return any("\x00" in value for value in texts if value)


def _insert_once(engine: "AsyncEngine", table: "Table", columns: tuple[str, ...]) -> str:
    """The driver's own INSERT … ON CONFLICT DO NOTHING, compiled once for all batches."""
    statement = insert_once(engine.dialect.name, table)
    compiled = statement.compile(dialect=engine.dialect, column_keys=list(columns))
    assert compiled.positiontup is not None
    assert tuple(compiled.positiontup) == columns, "the rows' order is the statement's order"
    return str(compiled)
