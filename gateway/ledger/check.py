"""`headgate db check`: are the ledger's parts true to each other?

Roll-ups are computed again from the rows with the code that writes them; every link of the audit
chain is hashed again; reversals must take back exactly what they name. Each finding is one line
that names the row.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import and_, case, delete, exists, func, insert, or_, select, union
from sqlalchemy.orm import aliased

from gateway.ledger import chain, state
from gateway.ledger.direct import direct
from gateway.ledger.records import Settlement
from gateway.ledger.rollup_writer import RollupWriter
from gateway.ledger.rollups import (
    DAY_S,
    DAY_US,
    DETAIL_SPANS_S,
    HALF_S,
    HOUR_S,
    MONTH_S,
    QUARTER_S,
    SET,
    SET_SPANS_S,
    SUMS,
    Totals,
    add,
    bucket_us,
    by_span,
    details_by_span,
    dimension_id,
    key_id,
    month_end_us,
)
from gateway.ledger.rows import CHARGE_COLUMNS, REQUEST_COLUMNS, settlement_of, to_us
from gateway.ledger.tables import chain as links
from gateway.ledger.tables import (
    charges,
    requests,
    rollup_details,
    rollup_keys,
    rollup_values,
    rollups,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_D = rollup_details.c
_PAGE = 1_000
_MOST_NAMED = 20
_SPAN_NAMES = {
    QUARTER_S: "quarter", HALF_S: "half hour", HOUR_S: "hour", DAY_S: "day", MONTH_S: "month",
}  # fmt: skip
_MARKS: tuple[state.Mark, ...] = ("rollups_from", "details_from", "half_hours_from")
Address = tuple[int, ...]
"""(span, bucket, key id) of a roll-up; of a detail ids of dimension and value before the key's."""


class ChainCheck(Struct, frozen=True, kw_only=True):
    """What hashing the audit chain again showed."""

    links: int = 0
    head: str = ""
    """The newest link's hash: noted elsewhere, it shows later that no link was cut off."""
    pruned: int = 0
    """Links whose rows retention removed; their hashes stand in for them."""
    problem: str | None = None
    """The first broken row."""


async def _days(connection: "AsyncConnection") -> AsyncIterator[int]:
    """The UTC days in which a request started or a charge was booked, unix microseconds."""
    started, booked = requests.c.started_us, charges.c.at_us
    day_us = -(2**62)
    while True:
        following = [select(func.min(at)).where(at >= day_us) for at in (started, booked)]
        row = await connection.execute(select(*(one.scalar_subquery() for one in following)))
        moments = [at_us for at_us in row.one() if at_us is not None]
        if not moments:
            return
        yield bucket_us(DAY_S, min(moments))
        day_us = bucket_us(DAY_S, min(moments)) + DAY_US


async def _of_day(connection: "AsyncConnection", day_us: int) -> AsyncIterator[Settlement]:
    """All requests that started in a UTC day or have a charge in it, as the tables hold them."""
    started, booked = requests.c.started_us, charges.c.at_us
    named = union(
        select(requests.c.request_id).where(started >= day_us, started < day_us + DAY_US),
        select(charges.c.request_id).where(booked >= day_us, booked < day_us + DAY_US),
    )
    ids = list((await connection.execute(named)).scalars())
    for start in range(0, len(ids), _PAGE):
        for one in await settlements(connection, ids[start : start + _PAGE]):
            yield one


async def settlements(
    connection: "AsyncConnection", request_ids: Sequence[str]
) -> list[Settlement]:
    """Those of these requests that have a row, with their charges, as the tables hold them."""
    columns = [requests.c[name] for name in REQUEST_COLUMNS]
    booked = await _charges_of(connection, request_ids)
    found = await connection.execute(select(*columns).where(requests.c.request_id.in_(request_ids)))
    return [settlement_of(row, booked.get(row[0], ())) for row in found]


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


async def _recomputed(
    connection: "AsyncConnection", whole: Totals
) -> AsyncIterator[tuple[int, Totals]]:
    """The details of one UTC day after the other, as there may be as many as there are requests;
    what the roll-ups should be is added to `whole` meanwhile."""
    async for day_us in _days(connection):
        of_day = Totals(quarters=whole.quarters, keys=whole.keys)
        beside = replace(of_day, quarters={})
        async for one in _of_day(connection, day_us):
            started = bucket_us(DAY_S, to_us(one.request.started_at)) == day_us
            add(of_day if started else beside, one)  # each is in the roll-ups once
        mine, sets = (
            {at: sums for at, sums in found.items() if bucket_us(DAY_S, at[0]) == day_us}
            for found in (of_day.details, of_day.sets)
        )
        yield day_us, Totals(details=mine, sets=sets, keys=whole.keys, values=of_day.values)


async def rollup_problems(connection: "AsyncConnection") -> list[str]:
    """Where roll-ups and details differ from the rows; one line per bucket and key."""
    pruned_us = await state.read(connection, "pruned_until")
    begin_us = max(await state.read(connection, "rollups_from"), pruned_us)
    detailed_us = max(await state.read(connection, "details_from"), begin_us)
    halves_us = max(await state.read(connection, "half_hours_from"), detailed_us)
    whole = Totals()
    problems: list[str] = []
    known = await _known_values(connection)
    held = select(_D.bucket_us).where(_D.bucket_us >= detailed_us).distinct()
    unseen = {bucket_us(DAY_S, at_us) for at_us in (await connection.execute(held)).scalars()}
    async for day_us, details in _recomputed(connection, whole):
        unseen.discard(day_us)
        if day_us >= detailed_us and len(problems) <= _MOST_NAMED:
            all_of_it = day_us >= halves_us
            problems += await _detail_problems(connection, day_us, details, known, all_of_it)
    for day_us in sorted(unseen):
        problems += await _detail_problems(connection, day_us, Totals(), known, True)
    problems += await _month_problems(connection, halves_us, known)
    wanted: dict[Address, tuple[int, ...]] = {
        at: tuple(sums) for at, sums in by_span(whole.quarters).items()
    }
    found: dict[Address, tuple[int, ...]] = {}
    for row in await connection.execute(select(rollups)):
        sums = tuple(row[3:])
        if any(sums):
            found[row.span_s, row.bucket_us, row.key_id] = sums
    differing = _differences(wanted, found)
    return _shortened(
        [
            f"roll-up of {_bucket(span_s, at_us)} (key {number}): {figures}"
            for (span_s, at_us, number), figures in differing
            if at_us >= begin_us
        ]
        + problems
    )


async def _known_values(connection: "AsyncConnection") -> dict[int, str]:
    """What details are of, by id, where the id is the right one."""
    rows = await connection.execute(select(rollup_values))
    return {
        row.id: f"{row.dimension} {row.value!r}"
        for row in rows
        if row.id == key_id((row.dimension, row.value))
    }


async def _detail_problems(
    connection: "AsyncConnection",
    day_us: int,
    totals: Totals,
    known: Mapping[int, str],
    all_of_it: bool,
) -> list[str]:
    """all_of_it: not only days by one user or tag, which older ones are."""
    wanted: dict[Address, tuple[int, ...]] = {
        (span_s, at_us, dimension_id(totals.values[value][0]), value, key): tuple(sums)
        for (span_s, at_us, value, key), sums in details_by_span(totals).items()
        if span_s in DETAIL_SPANS_S
    }
    found: dict[Address, tuple[int, ...]] = {}
    spans = _D.span_s.in_(DETAIL_SPANS_S)
    of_day = spans, _D.bucket_us >= day_us, _D.bucket_us < day_us + DAY_US
    for row in await connection.execute(select(rollup_details).where(*of_day)):
        sums = tuple(row[5:])
        if any(sums):
            found[tuple(row[:5])] = sums
    if not all_of_it:
        wanted, found = (
            {at: s for at, s in each.items() if at[0] == DAY_S and at[2] != dimension_id(SET)}
            for each in (wanted, found)
        )
    unknown = {value for _, _, _, value, _ in found} - known.keys()
    return [
        f"details of {_bucket(DAY_S, day_us)}: value {value} has no text"
        for value in sorted(unknown)
    ] + [
        f"details of {_bucket(span_s, at_us)}, {known.get(value, value)} (key {number}): {figures}"
        for (span_s, at_us, _, value, number), figures in _differences(wanted, found)
    ]


async def _month_problems(
    connection: "AsyncConnection", from_us: int, known: Mapping[int, str]
) -> list[str]:
    """Where months of sets are not the sums of their days, from a moment on."""
    problems: list[str] = []
    of_sets = _D.dimension_id == dimension_id(SET), _D.span_s.in_(SET_SPANS_S)
    held = select(_D.bucket_us).where(*of_sets, _D.bucket_us >= from_us).distinct()
    begins = {bucket_us(MONTH_S, at_us) for at_us in (await connection.execute(held)).scalars()}
    less = case((_D.span_s == MONTH_S, -1), else_=1)
    for begin_us in sorted(at_us for at_us in begins if at_us >= from_us):
        end_us = month_end_us(begin_us)
        differing = (
            select(_D.value_id, _D.key_id)
            .where(*of_sets, _D.bucket_us >= begin_us, _D.bucket_us < end_us)
            .group_by(_D.value_id, _D.key_id)
            .having(or_(*(func.sum(less * _D[name]) != 0 for name in SUMS)))
            .order_by(_D.value_id, _D.key_id)
            .limit(_MOST_NAMED + 1)
        )
        problems += [
            f"details of {_bucket(MONTH_S, begin_us)}, {known.get(value, value)} (key {number}): "
            "not the sums of its days"
            for value, number in await connection.execute(differing)
        ]
    return problems


def _bucket(span_s: int, at_us: int) -> str:
    """`the hour from 2026-11-22T16:30Z`"""
    began = datetime.fromtimestamp(at_us / 1e6, UTC)
    return f"the {_SPAN_NAMES[abs(span_s)]} from {began:%Y-%m-%dT%H:%MZ}"


def _differences(
    wanted: Mapping[Address, tuple[int, ...]], found: Mapping[Address, tuple[int, ...]]
) -> list[tuple[Address, str]]:
    """Where sums are not what they should be, and which."""
    nothing = (0,) * len(SUMS)
    return [
        (
            at,
            "; ".join(
                f"{name} {have}, the rows say {should}"
                for name, have, should in zip(
                    SUMS, found.get(at, nothing), wanted.get(at, nothing), strict=True
                )
                if have != should
            ),
        )
        for at in sorted(wanted.keys() | found.keys())
        if wanted.get(at) != found.get(at)
    ]


async def rebuild_rollups(connection: "AsyncConnection") -> int:
    """Write roll-ups and details again from the rows, in the caller's transaction; how many
    roll-ups there are.

    Buckets whose rows retention removed stay, but for details.
    """
    await state.hold_writers(connection)
    pruned_us = await state.read(connection, "pruned_until")
    await connection.execute(delete(rollups).where(rollups.c.bucket_us >= pruned_us))
    for table in (rollup_details, rollup_values):
        await connection.execute(delete(table))
    writer, driver = RollupWriter(connection.engine), await direct(connection)
    whole = Totals()
    async for day_us, details in _recomputed(connection, whole):
        if day_us >= pruned_us:
            await writer.write(driver, details)
    spans = {at: sums for at, sums in by_span(whole.quarters).items() if at[1] >= pruned_us}
    known = set((await connection.execute(select(rollup_keys.c.id))).scalars())
    names = rollup_keys.c.keys()[1:]
    keys = {number: whole.keys[number] for _, _, number in spans}
    new = [{"id": i, **dict(zip(names, k, strict=True))} for i, k in keys.items() if i not in known]
    rows = [
        {
            "span_s": span,
            "bucket_us": at,
            "key_id": number,
            **dict(zip(SUMS, sums, strict=True)),
        }
        for (span, at, number), sums in spans.items()
    ]
    if new:
        await connection.execute(insert(rollup_keys), new)
    if rows:
        await connection.execute(insert(rollups), rows)
    for mark in _MARKS:
        await state.write(connection, mark, 0)
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
