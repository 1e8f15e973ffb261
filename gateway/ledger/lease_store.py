"""Money on its way: counters' money leased to processes, booked when spent, returned when not.

One rule carries it: money is reserved by `UPDATE … SET reserved = reserved + x WHERE spent +
overrun + reserved + x <= limit`, which the database runs one at a time per counter, so no number of
processes can pass a limit together. What is reserved is leased to a process, slice by slice; it
holds each request's estimate against its slice in memory and books what was spent. Invariants:
reserved = Σ leases, and spent + reserved ≤ limit; what a request cost beyond its reservation is
`overrun`, apart, and counts when the next one asks. Counters are locked in one order, each before
its leases. A lease that ended stays as a tombstone for a day: whatever its owner booked or
answered and nobody knew of is then added once, and nothing twice.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update

from gateway.ledger.budget_store import (
    Budget,
    Counter,
    Spend,
    booked,
    counts_since_us,
    in_window,
    is_counter,
    lock,
)
from gateway.ledger.database import insert_once, now_us
from gateway.ledger.database_clock import now_of
from gateway.ledger.tables import budget_spend, budgets, leases
from gateway.ledger.windows import first_start_us, rolls

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_TOMBSTONE_US = 86_400_000_000
_FIRST_BEAT_US = 20_000_000
"""How long a lease that its owner does not know of waits for it to be extended."""
_LOOK_AGAIN_US = 600_000_000
"""How long after a lease ended its owner's late rows are looked for."""
_ANCHOR_US = -1
"""A rolling window's row that is only ever locked."""


class LeaseState(Struct, frozen=True, kw_only=True):
    """A process's lease of one counter as it should be, in totals: writing it twice is once."""

    owner: str
    outstanding: int
    """Reserved for the owner's requests under way and for its next ones."""
    held: int = 0
    """The part of it for requests under way."""
    spent: int
    overrun: int
    """Both since the lease began."""
    known_spent: int = 0
    known_overrun: int = 0
    """What is booked for certain, should the lease's row be gone."""


class Answered(Struct, frozen=True):
    """A request as a budget sees it that was made since it began."""

    started_us: int
    nano_usd: int
    held: bool
    """Against this budget, so it is in its process's slices."""


async def book(
    connection: "AsyncConnection", counter: Counter, lease: LeaseState, *, ttl_us: int
) -> tuple[Spend, LeaseState]:
    """Bring the counter and the lease's row to `lease`; the counter stays locked until commit.

    Of a lease that somebody ended meanwhile nothing is left to hand out: what was counted as spent
    on requests still under way is reserved again, and what was spent beyond that is overrun.

    Returns:
        The window afterwards, and the lease as it stands now.
    """
    c = budget_spend.c
    await lock(connection, counter)
    mine = (_leased(counter), leases.c.owner == lease.owner)
    row: Any = (await connection.execute(select(leases).where(*mine))).first()
    if row is None:
        nano, spent, overrun = 0, lease.known_spent, lease.known_overrun
    else:
        nano, spent, overrun = row.nano_usd, row.spent_nano_usd, row.overrun_nano_usd
    if row is None or row.ended_us is not None:
        lease = _resumed(lease, spent)
    now = now_us(connection.dialect.name)
    values = {
        "nano_usd": lease.outstanding,
        "held_nano_usd": lease.held,
        "spent_nano_usd": lease.spent,
        "overrun_nano_usd": lease.overrun,
        "expires_us": now + ttl_us,
        "ended_us": None,
    }
    if row is None:
        await connection.execute(
            insert(leases).values(
                scope=counter.scope,
                window=counter.window,
                window_start_us=counter.start_us,
                owner=lease.owner,
                created_us=now,
                **values,
            )
        )
    else:
        await connection.execute(update(leases).where(*mine).values(**values))
    changed = await connection.execute(
        update(budget_spend)
        .where(is_counter(counter))
        .values(
            spent_nano_usd=c.spent_nano_usd + (lease.spent - spent),
            overrun_nano_usd=c.overrun_nano_usd + (lease.overrun - overrun),
            reserved_nano_usd=c.reserved_nano_usd + (lease.outstanding - nano),
        )
        .returning(c.spent_nano_usd, c.reserved_nano_usd, c.overrun_nano_usd)
    )
    after = changed.one()
    if rolls(counter.window):
        return await window_spend(connection, counter), lease
    return Spend(spent=after[0], reserved=after[1], overrun=after[2]), lease


def _resumed(lease: LeaseState, counted: int) -> LeaseState:
    """The lease of a process that was taken for dead, so that nothing more is taken by it.

    Args:
        counted: what stands as spent in its name.
    """
    beyond = max(lease.spent - counted, 0)
    return msgspec.structs.replace(
        lease,
        outstanding=min(lease.held, max(counted - lease.spent, 0)),
        spent=lease.spent - beyond,
        overrun=lease.overrun + beyond,
    )


async def grant(
    connection: "AsyncConnection",
    counter: Counter,
    owner: str,
    nano_usd: int,
    *,
    limit_nano_usd: int | None,
) -> bool:
    """Move money into a lease; False if it does not fit under the limit (None: always fits)."""
    c = budget_spend.c
    statement = update(budget_spend).where(is_counter(counter))
    if limit_nano_usd is not None:
        taken: ColumnElement[Any] = c.spent_nano_usd + c.overrun_nano_usd + c.reserved_nano_usd
        if rolls(counter.window):
            await lock_anchor(connection, counter)
            taken = select(_taken_of_window(counter)).scalar_subquery()
        statement = statement.where(taken + nano_usd <= limit_nano_usd)
    done = await connection.execute(
        statement.values(reserved_nano_usd=c.reserved_nano_usd + nano_usd)
    )
    if done.rowcount == 0:
        return False
    await connection.execute(
        update(leases)
        .where(_leased(counter), leases.c.owner == owner)
        .values(nano_usd=leases.c.nano_usd + nano_usd)
    )
    return True


async def drop(connection: "AsyncConnection", counter: Counter, owner: str) -> None:
    """Forget a lease that holds nothing."""
    await connection.execute(
        delete(leases).where(_leased(counter), leases.c.owner == owner, leases.c.nano_usd == 0)
    )


async def limit_of(connection: "AsyncConnection", budget: Budget) -> int | None:
    """The limit as it is now; None: soft, or removed a moment ago."""
    found = await connection.execute(
        select(budgets.c.limit_nano_usd).where(
            budgets.c.scope == budget.scope,
            budgets.c.window == budget.window,
            budgets.c.soft.is_(False),
        )
    )
    return found.scalar_one_or_none()


async def extend(connection: "AsyncConnection", owner: str, *, ttl_us: int) -> None:
    """A live process keeps its leases."""
    await connection.execute(
        update(leases)
        .where(leases.c.owner == owner, leases.c.ended_us.is_(None))
        .values(expires_us=now_us(connection.dialect.name) + ttl_us)
    )


async def reap(connection: "AsyncConnection", *, dead: str | None = None) -> int:
    """End the leases of processes that died; how many.

    What the dead process answered stands in the ledger under its name, also what it had not booked
    yet. What it held for requests under way counts as spent unless the ledger knows better; the
    rest of its slice returns.

    Args:
        dead: an owner that is known to be dead and whose requests are all settled: its leases end
            now, and nothing of them counts but what the ledger has. None: whose lease ran out.
    """
    now = now_us(connection.dialect.name)
    ran_out = leases.c.owner == dead if dead else leases.c.expires_us < now
    fresh = leases.c.ended_us > now - _LOOK_AGAIN_US
    rows: Sequence[Any] = (
        await connection.execute(
            select(leases)
            .where(ran_out, leases.c.ended_us.is_(None) | fresh)
            .order_by(leases.c.scope, leases.c.window, leases.c.window_start_us)
        )
    ).all()
    ended = 0
    for row in rows:
        ended += await _reap_one(connection, row, certain=dead is not None)
    return ended


async def _reap_one(connection: "AsyncConnection", seen: Any, *, certain: bool) -> bool:
    """End one lease, or add what turned up late; whether it ended now.

    Args:
        certain: the ledger has all that the owner did, so it may also say less than was booked.
    """
    counter = Counter(seen.scope, seen.window, seen.window_start_us)
    await lock(connection, counter)
    mine = and_(_leased(counter), leases.c.owner == seen.owner)
    row: Any = (await connection.execute(select(leases).where(mine))).first()
    if row is None or (not certain and row.expires_us != seen.expires_us):
        return False  # its owner lives after all
    since_us = await counts_since_us(connection, counter, row.created_us)
    answered = select(booked(counter, since_us=since_us, worker=row.owner))
    known = int((await connection.execute(answered)).scalar_one())
    missing = known - row.counted_nano_usd - row.spent_nano_usd - row.overrun_nano_usd
    if not certain:
        missing = max(missing, row.held_nano_usd if row.ended_us is None else 0)
    if row.ended_us is not None and missing == 0:
        return False
    within = min(missing, row.nano_usd) if missing > 0 else max(missing, -row.spent_nano_usd)
    over = missing - within if missing > 0 else 0
    c = budget_spend.c
    await connection.execute(
        update(budget_spend)
        .where(is_counter(counter))
        .values(
            spent_nano_usd=c.spent_nano_usd + within,
            overrun_nano_usd=c.overrun_nano_usd + over,
            reserved_nano_usd=c.reserved_nano_usd - row.nano_usd,
        )
    )
    await connection.execute(
        update(leases)
        .where(mine)
        .values(
            nano_usd=0,
            held_nano_usd=0,
            spent_nano_usd=row.spent_nano_usd + within,
            overrun_nano_usd=row.overrun_nano_usd + over,
            ended_us=now_us(connection.dialect.name),
        )
    )
    return row.ended_us is None


async def note_counted(
    connection: "AsyncConnection", counter: Counter, owner: str, rows: Sequence[Answered]
) -> None:
    """Note for the end of the owner's lease, which looks at when requests began: what it will find
    was counted beside the lease, what it will not find stands in it.

    One that has no lease yet, and may lease in a moment, gets an empty one.
    """
    mine = (_leased(counter), leases.c.owner == owner)
    now = round(await now_of(connection) * 1e6)
    leased_us = (await connection.execute(select(leases.c.created_us).where(*mine))).scalar()
    since_us = await counts_since_us(connection, counter, now if leased_us is None else leased_us)
    counted = sum(one.nano_usd for one in rows if not one.held and one.started_us >= since_us)
    counted -= sum(one.nano_usd for one in rows if one.held and one.started_us < since_us)
    if leased_us is not None:
        more = leases.c.counted_nano_usd + counted
        await connection.execute(update(leases).where(*mine).values(counted_nano_usd=more))
    elif counted > 0:
        await connection.execute(
            insert(leases).values(
                scope=counter.scope,
                window=counter.window,
                window_start_us=counter.start_us,
                owner=owner,
                created_us=now,
                expires_us=now + _FIRST_BEAT_US,
                counted_nano_usd=counted,
            )
        )


async def sweep(connection: "AsyncConnection") -> None:
    """Remove tombstones and buckets that nobody will ask for again."""
    now = now_us(connection.dialect.name)
    await connection.execute(delete(leases).where(leases.c.ended_us < now - _TOMBSTONE_US))
    rows = await connection.execute(
        select(budget_spend.c.scope, budget_spend.c.window)
        .where(budget_spend.c.window.like("rolling-%"))
        .distinct()
    )
    for scope, window in rows.all():
        keep_us = -first_start_us(window, 0) + _TOMBSTONE_US
        await connection.execute(
            delete(budget_spend).where(
                budget_spend.c.scope == scope,
                budget_spend.c.window == window,
                budget_spend.c.window_start_us >= 0,
                budget_spend.c.window_start_us < now - keep_us,
            )
        )


async def window_spend(connection: "AsyncConnection", counter: Counter) -> Spend:
    """What the counter's window says; of a rolling one, all its buckets."""
    c = budget_spend.c
    sums = [
        func.coalesce(func.sum(column), 0)
        for column in (c.spent_nano_usd, c.reserved_nano_usd, c.overrun_nano_usd)
    ]
    row = (await connection.execute(select(*sums).where(in_window(counter)))).one()
    return Spend(spent=int(row[0]), reserved=int(row[1]), overrun=int(row[2]))


def _taken_of_window(counter: Counter) -> ColumnElement[Any]:
    rows = budget_spend.alias("bucket")
    taken = rows.c.spent_nano_usd + rows.c.overrun_nano_usd + rows.c.reserved_nano_usd
    return (
        select(func.sum(taken))
        .where(
            rows.c.scope == counter.scope,
            rows.c.window == counter.window,
            rows.c.window_start_us >= first_start_us(counter.window, counter.start_us),
        )
        .scalar_subquery()
    )


async def lock_anchor(connection: "AsyncConnection", counter: Counter) -> None:
    """Of a rolling window, whose grants in different buckets must not pass together."""
    anchor = Counter(counter.scope, counter.window, _ANCHOR_US)
    await connection.execute(
        insert_once(connection.dialect.name, budget_spend).values(
            scope=anchor.scope, window=anchor.window, window_start_us=anchor.start_us
        )
    )
    await lock(connection, anchor)


def _leased(counter: Counter) -> ColumnElement[bool]:
    return and_(
        leases.c.scope == counter.scope,
        leases.c.window == counter.window,
        leases.c.window_start_us == counter.start_us,
    )
