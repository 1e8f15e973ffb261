"""Requests and charges in SQL: batched idempotent inserts, and finding one request again.

A batch is one transaction: names become subject ids, rows that are not there yet are inserted, and
exactly those are added to the roll-ups, to budgets made meanwhile and, if it is on, to the audit
chain. Every statement takes its rows in sorted order and the tables in the same order, so writers
cannot deadlock.

A client may send one id to two processes at once; each notices only its own. The request whose row
came first keeps the id, the other is written under one made of it: who repeats ids pays as well.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from sqlalchemy import select

from gateway.ledger import chain, state, subjects
from gateway.ledger.database import inserting_once, writing
from gateway.ledger.direct import Direct, direct
from gateway.ledger.late_spending import Missed
from gateway.ledger.records import Settlement
from gateway.ledger.rollup_writer import RollupWriter
from gateway.ledger.rollups import Totals, add
from gateway.ledger.rows import (
    CHARGE_COLUMNS,
    REQUEST_COLUMNS,
    charge_row,
    request_row,
    settlement_of,
    to_us,
    without_nul,
)
from gateway.ledger.subjects import Subject
from gateway.ledger.tables import charges, requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_replace = msgspec.structs.replace
_encode = msgspec.json.Encoder().encode
_AMONG = (
    "= ANY({0}::varchar[]) AND request_id BETWEEN (SELECT min(id) FROM unnest({0}::varchar[]) id) "
    "AND (SELECT max(id) FROM unnest({0}::varchar[]) id)"
)
"""Between the least and the greatest, so that of partitions only those of now are looked at; by the
database's own order."""
_OURS = (
    f"SELECT request_id FROM requests WHERE request_id {_AMONG.format('$1')} "
    "AND xmin = pg_current_xact_id()::xid"
)
"""Rows that this very transaction inserted; another may have been quicker with the same id."""
_KNOWN = """
SELECT kind, name, id FROM subjects WHERE kind = 'team' AND name {0}
UNION ALL SELECT kind, name, id FROM subjects WHERE kind = 'user' AND name {1}
UNION ALL SELECT 'request', request_id, '' FROM requests WHERE request_id {2}
UNION ALL SELECT 'closed', '', CAST(value AS TEXT) FROM ledger_state WHERE name = 'closed_until'
UNION ALL SELECT 'budget', '', CAST(max(created_us) AS TEXT) FROM budgets
"""
_IN_ARRAY = ("= ANY($1::text[])", "= ANY($2::text[])", _AMONG.format("$3"))
_IN_JSON = ("IN (SELECT value FROM json_each(?))",) * 3
_ANSWER_IDS = ("chatcmpl-", "cmpl-", "resp_")
"""What the `id` of an answer has before that of its request."""
_SLICE = 256
"""Rows that are prepared in one go; the event loop waits meanwhile."""
_MOST_OF_A_USER = 512
"""Characters. Clients write what they like there, and PostgreSQL's indexes take 2.7 kB."""


class _Known(Struct, kw_only=True):
    """What the database has of a batch."""

    ids: dict[Subject, str]
    requests: set[str]
    closed_until_us: int = 0
    youngest_budget_us: int = 0
    """When it was made."""


class Repository:
    """The only writer and reader of `requests` and `charges` rows, one by one.

    Args:
        chained: write the audit chain.
    """

    def __init__(self, engine: "AsyncEngine", *, chained: bool = False) -> None:
        self._engine = engine
        self._chained = chained
        self._insert_request = inserting_once(engine, requests, REQUEST_COLUMNS)
        self._insert_charge = inserting_once(engine, charges, CHARGE_COLUMNS)
        self._rollups = RollupWriter(engine)
        self._postgresql = engine.dialect.name == "postgresql"
        self._known = _KNOWN.format(*(_IN_ARRAY if self._postgresql else _IN_JSON))

    async def write(self, settlements: Sequence[Settlement]) -> None:
        """Write all in one transaction; rows that are already there stay as they are.

        Raises:
            SQLAlchemyError: nothing was written.
        """
        async with writing(self._engine) as connection:
            keys = await self.write_on(connection, settlements)
        self._rollups.committed(keys)

    async def write_on(
        self, connection: "AsyncConnection", settlements: Sequence[Settlement]
    ) -> set[int]:
        """The same inside the caller's transaction, begun by `writing`.

        Returns:
            Ids of the roll-ups' new keys, which the database has once that is committed.
        """
        driver = await direct(connection)
        merged, others = _merged(map(_storable, settlements))
        known = await self._look_up(driver, connection, merged)
        missed = await Missed.begin(connection, merged, known.youngest_budget_us)
        totals = Totals()
        mine: set[str] = set()
        written: list[Settlement] = []
        for start in range(0, len(merged), _SLICE):  # between two, requests are answered
            batch = {
                one.request.request_id: _stored(one, known)
                for one in merged[start : start + _SLICE]
            }
            inserted = await self._insert_requests(driver, batch, known)
            mine |= inserted
            fresh = [one for name, one in batch.items() if name in inserted]
            for one in fresh:
                add(totals, one)
            for place, (name, one) in enumerate(batch.items(), start):
                if name in inserted:
                    continue
                before = await find_rows(connection, name, lock=True)
                assert before is not None, "somebody else inserted it, so it is there"
                if not _same(before, one):
                    others.append(_under_another_id(merged[place]))
                elif (late := _late(before, one, totals)) is not None:
                    fresh.append(late)
            charge_rows = [charge_row(charge) for one in fresh for charge in one.charges]
            if charge_rows:
                await driver.many(self._insert_charge, charge_rows)
            written += fresh
        keys = await self._rollups.write(driver, totals)
        if missed is not None:
            await missed.count(connection, written)
        if self._chained and written:
            await chain.extend(connection, written, requests=mine)
        if others:
            keys |= await self.write_on(connection, others)
        return keys

    async def _look_up(
        self, driver: Direct, connection: "AsyncConnection", batch: Sequence[Settlement]
    ) -> _Known:
        """All that the batch needs to know, in one question; new teams and users get ids."""
        names = _names(batch)
        asked: list[Any] = [[name for kind, name in names if kind == k] for k in ("team", "user")]
        asked.append([one.request.request_id for one in batch])
        if self._postgresql:  # no month is closed, no budget made; the next statement sees it
            await driver.fetch(state.SHARE_CLOSING, ())
        else:
            asked = [_encode(one).decode() for one in asked]
        known = _Known(ids={}, requests=set())
        for what, name, value in await driver.fetch(self._known, tuple(asked)):
            if what == "request":
                known.requests.add(name)
            elif what == "closed":
                known.closed_until_us = int(value)
            elif what == "budget":
                known.youngest_budget_us = int(value or 0)
            else:
                known.ids[what, name] = value
        new = names - known.ids.keys()
        if new:
            known.ids.update(await subjects.ids_of(connection, new))
        return known

    async def _insert_requests(
        self, driver: Direct, batch: dict[str, Settlement], known: _Known
    ) -> set[str]:
        """Insert what is missing; the ids of the rows that are now ours."""
        missing = batch.keys() - known.requests
        if not missing:
            return missing
        rows = [request_row(one.request) for name, one in batch.items() if name in missing]
        await driver.many(self._insert_request, rows)
        if not self._postgresql:
            return missing  # nobody else writes meanwhile
        return {row[0] for row in await driver.fetch(_OURS, (list(missing),))}

    async def known(self, request_ids: Sequence[str]) -> set[str]:
        """Those that have a row."""
        found: set[str] = set()
        async with self._engine.connect() as connection:
            for start in range(0, len(request_ids), _SLICE):
                some = requests.c.request_id.in_(request_ids[start : start + _SLICE])
                rows = await connection.execute(select(requests.c.request_id).where(some))
                found.update(rows.scalars())
        return found

    async def find(self, request_id: str) -> Settlement | None:
        """A request with its charges, in the order of their seq."""
        async with self._engine.connect() as connection:
            return await find_settlement(connection, request_id)


def requests_meant(named: str) -> tuple[str, ...]:
    """The ids of requests that a name may stand for: itself, and what an answer's `id` holds."""
    prefix = next((start for start in _ANSWER_IDS if named.startswith(start)), "")
    return (named, named.removeprefix(prefix)) if prefix else (named,)


async def find_settlement(
    connection: "AsyncConnection", named: str, *, lock: bool = False
) -> Settlement | None:
    """A request with its charges, under its team's and user's names, over an open connection.

    Args:
        named: its id, or the `id` of the answer that it got.
        lock: keep late charges in line.
    """
    found = None
    for request_id in requests_meant(named):
        found = found or await find_rows(connection, request_id, lock=lock)
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


def _late(before: Settlement, one: Settlement, totals: Totals) -> Settlement | None:
    """Charges that turn up after their request's row: a shadow's, a correction's."""
    known = {charge.seq for charge in before.charges}
    fresh = tuple(charge for charge in one.charges if charge.seq not in known)
    if not fresh:
        return None
    after = Settlement(request=before.request, charges=before.charges + fresh)
    add(totals, before, sign=-1)
    add(totals, after)
    return Settlement(request=before.request, charges=fresh)


def _same(before: Settlement, one: Settlement) -> bool:
    """Whether two settlements of one id are one request's: all of them say when it began."""
    return to_us(before.request.started_at) == to_us(one.request.started_at)


def _under_another_id(one: Settlement) -> Settlement:
    """The same whenever it is written again."""
    request = one.request
    told = f"{to_us(request.started_at)} {request.worker} {request.key}"
    name = f"{request.request_id[:100]}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    return Settlement(
        request=_replace(request, request_id=name),
        charges=tuple(_replace(charge, request_id=name) for charge in one.charges),
        heeded_us=one.heeded_us,
    )


def _merged(settlements: Iterable[Settlement]) -> tuple[list[Settlement], list[Settlement]]:
    """Sorted by request id: the first row of each, and every charge once. And other requests of the
    same ids, to be written after those, as what other budgets count."""
    merged: dict[str, Settlement] = {}
    others: list[Settlement] = []
    for one in settlements:
        name = one.request.request_id
        first = merged.get(name)
        if first is None:
            merged[name] = one
        elif _same(first, one) and one.heeded_us in (None, first.heeded_us):
            known = {charge.seq for charge in first.charges}
            fresh = tuple(charge for charge in one.charges if charge.seq not in known)
            merged[name] = _replace(first, charges=first.charges + fresh)
        else:
            others.append(one)
    return [merged[name] for name in sorted(merged)], others


def _names(settlements: Iterable[Settlement]) -> set[Subject]:
    names: set[Subject] = set()
    for one in settlements:
        names.add(("team", one.request.team))
        if one.request.user is not None:
            names.add(("user", one.request.user))
    return names


def _stored(one: Settlement, known: _Known) -> Settlement:
    """With subject ids in place of names, and charges of a closed month right after it."""
    request, booked = one.request, one.charges
    request = _replace(
        request,
        team=known.ids["team", request.team],
        user=None if request.user is None else known.ids["user", request.user],
    )
    first = known.closed_until_us / 1_000_000
    if first and any(charge.at < first for charge in booked):
        booked = tuple(c if c.at >= first else _replace(c, at=first) for c in booked)
    return Settlement(request=request, charges=booked)


def _storable(one: Settlement) -> Settlement:
    """What every database takes: a long user keeps its beginning and a digest of all of it."""
    if _has_nul(one):
        one = without_nul(one)
    user = one.request.user
    if user is None or len(user) <= _MOST_OF_A_USER:
        return one
    digest = hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()
    short = f"{user[:_MOST_OF_A_USER]}…{digest[:32]}"
    return _replace(one, request=_replace(one.request, user=short))


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
