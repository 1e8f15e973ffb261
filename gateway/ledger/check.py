"""`headgate db check`: are the ledger's parts true to each other?

Roll-ups are computed again from the rows with the code that writes them; every link of the audit
chain is hashed again; reversals must take back exactly what they name. Each finding is one line
that names the row.
"""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import and_, delete, exists, func, insert, or_, select
from sqlalchemy.orm import aliased

from gateway.ledger import chain, state
from gateway.ledger.records import Settlement
from gateway.ledger.rollups import SUMS, Bucket, Key, Sums, add, by_span, key_id
from gateway.ledger.rows import CHARGE_COLUMNS, REQUEST_COLUMNS, settlement_of
from gateway.ledger.tables import chain as links
from gateway.ledger.tables import charges, requests, rollup_keys, rollups

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_PAGE = 1_000
_MOST_NAMED = 20
Address = tuple[int, int, int]
"""(span, bucket, key id)"""


class ChainCheck(Struct, frozen=True, kw_only=True):
    """What hashing the audit chain again showed."""

    links: int = 0
    head: str = ""
    """The newest link's hash: noted elsewhere, it shows later that no link was cut off."""
    pruned: int = 0
    """Links whose rows retention removed; their hashes stand in for them."""
    problem: str | None = None
    """The first broken row."""


async def settlements(
    connection: "AsyncConnection", *, since_us: int = 0, until_us: int = 2**62
) -> AsyncIterator[Settlement]:
    """All requests that started in a period with their charges, as the tables hold them."""
    after = ""
    columns = [requests.c[name] for name in REQUEST_COLUMNS]
    while True:
        page = await connection.execute(
            select(*columns)
            .where(requests.c.request_id > after)
            .where(requests.c.started_us >= since_us, requests.c.started_us < until_us)
            .order_by(requests.c.request_id)
            .limit(_PAGE)
        )
        rows = page.all()
        if not rows:
            return
        booked = await _charges_of(connection, [row[0] for row in rows])
        for row in rows:
            yield settlement_of(row, booked.get(row[0], ()))
        after = rows[-1][0]


async def _charges_of(
    connection: "AsyncConnection", request_ids: Sequence[str]
) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in await connection.execute(
        select(*(charges.c[name] for name in CHARGE_COLUMNS))
        .where(charges.c.request_id.in_(request_ids))
        .order_by(charges.c.request_id, charges.c.seq)
    ):
        found.setdefault(row[0], []).append(row)
    return found


async def _recomputed(connection: "AsyncConnection") -> dict[tuple[int, int, Key], Sums]:
    totals: dict[Bucket, Sums] = {}
    async for one in settlements(connection):
        add(totals, one)
    return by_span(totals)


async def rollup_problems(connection: "AsyncConnection") -> list[str]:
    """Where roll-ups differ from the rows; one line per bucket and key."""
    begin_us = max(
        await state.read(connection, "rollups_from"), await state.read(connection, "pruned_until")
    )
    wanted = {
        (span, at, key_id(key)): tuple(sums)
        for (span, at, key), sums in (await _recomputed(connection)).items()
    }
    found: dict[Address, tuple[int, ...]] = {}
    for row in await connection.execute(select(rollups)):
        sums = tuple(row[3:])
        if any(sums):
            found[row.span_s, row.bucket_us, row.key_id] = sums
    problems = [
        _difference(at, wanted.get(at), found.get(at))
        for at in sorted(wanted.keys() | found.keys())
        if at[1] >= begin_us and wanted.get(at) != found.get(at)
    ]
    return _shortened(problems)


def _difference(at: Address, wanted: tuple[int, ...] | None, found: tuple[int, ...] | None) -> str:
    span_s, bucket_us, number = at
    where = f"roll-up of {span_s} s from {bucket_us // 1_000_000} (key {number})"
    nothing = (0,) * len(SUMS)
    figures = [
        f"{name} {have}, the rows say {should}"
        for name, have, should in zip(SUMS, found or nothing, wanted or nothing, strict=True)
        if have != should
    ]
    return f"{where}: {'; '.join(figures)}"


async def rebuild_rollups(connection: "AsyncConnection") -> int:
    """Write the roll-ups again from the rows, in the caller's transaction; how many there are.

    Buckets whose rows retention removed stay.
    """
    await state.hold_writers(connection)
    pruned_us = await state.read(connection, "pruned_until")
    await connection.execute(delete(rollups).where(rollups.c.bucket_us >= pruned_us))
    spans = {at: sums for at, sums in (await _recomputed(connection)).items() if at[1] >= pruned_us}
    known = set((await connection.execute(select(rollup_keys.c.id))).scalars())
    names = rollup_keys.c.keys()[1:]
    keys = {key_id(key): key for _, _, key in spans}
    new = [{"id": i, **dict(zip(names, k, strict=True))} for i, k in keys.items() if i not in known]
    rows = [
        {
            "span_s": span,
            "bucket_us": at,
            "key_id": key_id(key),
            **dict(zip(SUMS, sums, strict=True)),
        }
        for (span, at, key), sums in spans.items()
    ]
    if new:
        await connection.execute(insert(rollup_keys), new)
    if rows:
        await connection.execute(insert(rollups), rows)
    await state.write(connection, "rollups_from", 0)
    return len(rows)


async def row_problems(connection: "AsyncConnection") -> list[str]:
    """Charges without a request, and reversals that do not take back what they name."""
    c, reversed_ = charges.c, aliased(charges)
    orphans = await connection.execute(
        select(c.request_id, c.seq)
        .where(~exists().where(requests.c.request_id == c.request_id))
        .limit(_MOST_NAMED)
    )
    problems = [f"charge {row.seq} of request {row.request_id!r} has no request" for row in orphans]
    r = reversed_.c
    odd = await connection.execute(
        select(c.request_id, c.seq, c.reverses_seq)
        .outerjoin(reversed_, and_(r.request_id == c.request_id, r.seq == c.reverses_seq))
        .where(c.reverses_seq.is_not(None), c.kind == "reversal")
        .where(or_(r.seq.is_(None), r.cost_nano_usd != -c.cost_nano_usd))
        .limit(_MOST_NAMED)
    )
    problems += [
        f"charge {row.seq} of request {row.request_id!r} does not take back charge "
        f"{row.reverses_seq}"
        for row in odd
    ]
    twice = await connection.execute(
        select(c.request_id, c.reverses_seq)
        .where(c.kind == "reversal")
        .group_by(c.request_id, c.reverses_seq)
        .having(func.count() > 1)
        .limit(_MOST_NAMED)
    )
    return problems + [
        f"charge {row.reverses_seq} of request {row.request_id!r} is reversed twice"
        for row in twice
    ]


async def check_chain(
    connection: "AsyncConnection", *, anchor: tuple[int, str] | None = None
) -> ChainCheck:
    """Hash every row again, in the chain's order.

    Args:
        anchor: number and hash of a link as it was noted earlier, outside the database.
    """
    pruned_us = await state.read(connection, "pruned_until")
    n, last, gone = 0, chain.FIRST, 0
    while True:
        page = (
            await connection.execute(
                select(links).where(links.c.n > n).order_by(links.c.n).limit(_PAGE)
            )
        ).all()
        if not page:
            break
        rows = await _rows_of(connection, [link.request_id for link in page])
        for link in page:
            what = chain.name(link.request_id, link.seq)
            if link.n != n + 1:
                return ChainCheck(links=n, problem=f"link {n + 1} is missing, before {what}")
            row = rows.get((link.request_id, link.seq))
            if row is None and pruned_us:
                gone, expected = gone + 1, link.sha256
            elif row is None:
                return ChainCheck(links=n, problem=f"link {link.n}: {what} is gone")
            else:
                expected = chain.link(last, row)
            if expected != link.sha256:
                return ChainCheck(links=n, problem=f"link {link.n}: {what} was changed")
            n, last = link.n, link.sha256
            if anchor is not None and anchor[0] == n and anchor[1] != last:
                return ChainCheck(links=n, problem=f"link {n} is not the one that was noted")
    if anchor is not None and anchor[0] > n:
        return ChainCheck(links=n, problem=f"links {n + 1} to {anchor[0]} were cut off")
    return ChainCheck(links=n, head=last if n else "", pruned=gone)


async def unchained_problems(connection: "AsyncConnection") -> list[str]:
    """Rows that no link hashes, since there are links: put in by hand, or by a process without
    the chain."""
    from_us = await state.read(connection, "chained_from")
    if not from_us:
        return []
    r, c, mine, its = requests.c, charges.c, links.alias("mine"), links.alias("its")
    alone = (
        select(r.request_id)
        .outerjoin(links, and_(links.c.request_id == r.request_id, links.c.seq.is_(None)))
        .where(r.started_us >= from_us, links.c.n.is_(None))
        .order_by(r.request_id)
        .limit(_MOST_NAMED)
    )
    beside = (
        select(c.request_id, c.seq)
        .outerjoin(mine, and_(mine.c.request_id == c.request_id, mine.c.seq == c.seq))
        .outerjoin(its, and_(its.c.request_id == c.request_id, its.c.seq.is_(None)))
        .where(mine.c.n.is_(None), or_(c.at_us >= from_us, its.c.n.is_not(None)))
        .order_by(c.request_id, c.seq)
        .limit(_MOST_NAMED)
    )
    found = [(row.request_id, None) for row in await connection.execute(alone)]
    found += [(row.request_id, row.seq) for row in await connection.execute(beside)]
    return [f"audit chain: {chain.name(*row)} is in no link" for row in found]


async def _rows_of(
    connection: "AsyncConnection", request_ids: Sequence[str]
) -> dict[tuple[str, int | None], chain.Row]:
    wanted = sorted(set(request_ids))
    found: dict[tuple[str, int | None], chain.Row] = {}
    booked = await _charges_of(connection, wanted)
    columns = [requests.c[name] for name in REQUEST_COLUMNS]
    for row in await connection.execute(select(*columns).where(requests.c.request_id.in_(wanted))):
        one = settlement_of(row, booked.get(row[0], ()))
        found[row[0], None] = one.request
        found |= {(row[0], charge.seq): charge for charge in one.charges}
    return found


def _shortened(problems: list[str]) -> list[str]:
    if len(problems) <= _MOST_NAMED:
        return problems
    return [*problems[:_MOST_NAMED], f"and {len(problems) - _MOST_NAMED} more"]
