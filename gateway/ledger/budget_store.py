"""The SQL of budgets: limits, counters and leases, correct across processes.

One rule carries it: money is reserved by `UPDATE … SET reserved = reserved + x WHERE spent +
overrun + reserved + x <= limit`, which the database runs one at a time per counter, so no number of
processes can pass a limit together. What is reserved is leased to a process, slice by slice; it
holds each request's estimate against its slice in memory and books what was spent. Invariants:
reserved = Σ leases, and spent + reserved ≤ limit; what a request cost beyond its reservation is
`overrun`, apart, and counts when the next one asks. Counters are locked in one order, each before
its leases.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import ColumnElement, ScalarSelect, and_, delete, func, insert, or_, select, update

from gateway.ledger.database import insert_once
from gateway.ledger.money import MAX_NANO_USD, usd_text
from gateway.ledger.tables import budget_spend, budgets, charges, leases, requests
from gateway.ledger.windows import WINDOWS, window_start_us

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MAX_LIMIT_NANO_USD = MAX_NANO_USD // 4
"""So that no sum in SQL can leave BIGINT."""
_BEFORE_LEASE_US = 1_000_000
"""A request starts a little before it reserves."""
_SCOPE_COLUMNS = {"team": requests.c.team, "key": requests.c.key, "user": requests.c.user}


class Budget(Struct, frozen=True, kw_only=True):
    """A limit."""

    scope: str
    """team:T, key:K, user:U or global."""
    window: str
    """minute, hour, day, month or total."""
    limit_nano_usd: int
    soft: bool = False
    """Warns, never refuses."""


class Counter(Struct, frozen=True):
    """Names one row of budget_spend."""

    scope: str
    window: str
    start_us: int


class Spend(Struct, frozen=True, kw_only=True):
    """What a counter says, in nano-dollars."""

    spent: int = 0
    reserved: int = 0
    overrun: int = 0

    @property
    def taken(self) -> int:
        """All that counts against the limit."""
        return self.spent + self.reserved + self.overrun


class UnknownBudget(LookupError):
    """No budget for that scope and window."""


def check_scope(scope: str) -> str:
    """The scope. Raises ValueError if it is none."""
    kind, colon, name = scope.partition(":")
    if scope == "global" or (colon and kind in _SCOPE_COLUMNS and 0 < len(name) <= 128):
        return scope
    raise ValueError(f"scope {scope!r}; allowed: team:NAME, key:ID, user:NAME or global")


def counter_of(budget: Budget, now: float) -> Counter:
    """The counter that `budget` uses at `now` (unix seconds)."""
    return Counter(budget.scope, budget.window, window_start_us(budget.window, now))


async def set_budget(
    connection: "AsyncConnection",
    *,
    scope: str,
    window: str,
    limit_nano_usd: int,
    soft: bool,
    now: float,
) -> Budget:
    """Make or change a budget. A new one counts what its window already spent.

    Raises:
        ValueError: no such scope or window, or a limit that is not positive.
    """
    check_scope(scope)
    if window not in WINDOWS:
        raise ValueError(f"window {window!r}; allowed: {', '.join(WINDOWS)}")
    if not 0 < limit_nano_usd <= MAX_LIMIT_NANO_USD:
        raise ValueError(
            f"limit ${usd_text(limit_nano_usd)}; allowed: more than 0, "
            f"at most {usd_text(MAX_LIMIT_NANO_USD)}"
        )
    budget = Budget(scope=scope, window=window, limit_nano_usd=limit_nano_usd, soft=soft)
    here = and_(budgets.c.scope == scope, budgets.c.window == window)
    changed = await connection.execute(
        update(budgets).where(here).values(limit_nano_usd=limit_nano_usd, soft=soft)
    )
    if changed.rowcount == 0:
        await connection.execute(
            insert(budgets).values(
                scope=scope,
                window=window,
                limit_nano_usd=limit_nano_usd,
                soft=soft,
                created_us=round(now * 1e6),
            )
        )
        counter = counter_of(budget, now)
        await ensure_counter(connection, counter)
        await connection.execute(  # a counter of an earlier budget stood still meanwhile
            update(budget_spend)
            .where(_is(counter))
            .values(spent_nano_usd=_booked(counter), overrun_nano_usd=0)
        )
    return budget


async def remove_budget(connection: "AsyncConnection", *, scope: str, window: str) -> None:
    """Raises UnknownBudget."""
    gone = await connection.execute(
        delete(budgets).where(budgets.c.scope == scope, budgets.c.window == window)
    )
    if gone.rowcount == 0:
        raise UnknownBudget(f"no budget for {scope!r} per {window}; `headgate budgets list`")


async def list_budgets(connection: "AsyncConnection") -> list[Budget]:
    """All budgets, by scope and window."""
    rows = await connection.execute(select(budgets).order_by(budgets.c.scope, budgets.c.window))
    return [
        Budget(
            scope=row.scope,
            window=row.window,
            limit_nano_usd=row.limit_nano_usd,
            soft=row.soft,
        )
        for row in rows
    ]


async def read_spend(
    connection: "AsyncConnection", counters: Sequence[Counter]
) -> dict[Counter, Spend]:
    """What the counters say; one that does not exist yet is missing."""
    found: dict[Counter, Spend] = {}
    for start in range(0, len(counters), 200):
        part = counters[start : start + 200]
        rows = await connection.execute(select(budget_spend).where(or_(*map(_is, part))))
        for row in rows:
            found[Counter(row.scope, row.window, row.window_start_us)] = Spend(
                spent=row.spent_nano_usd,
                reserved=row.reserved_nano_usd,
                overrun=row.overrun_nano_usd,
            )
    return found


async def ensure_counter(connection: "AsyncConnection", counter: Counter) -> None:
    """Make the counter's row if it is missing, starting from the charges already in its window.

    A request counts in the window in which it started.
    """
    await connection.execute(
        insert_once(connection.dialect.name, budget_spend).values(
            scope=counter.scope,
            window=counter.window,
            window_start_us=counter.start_us,
            spent_nano_usd=_booked(counter),
        )
    )


def _booked(
    counter: Counter, *, since_us: int | None = None, worker: str | None = None
) -> ScalarSelect[Any]:
    """What the ledger has in the counter's scope and window, all of it or one process's."""
    kind, _, name = counter.scope.partition(":")
    since_us = counter.start_us if since_us is None else since_us
    booked = (
        select(func.coalesce(func.sum(charges.c.cost_nano_usd), 0))
        .join(requests, requests.c.request_id == charges.c.request_id)
        .where(requests.c.started_us >= since_us)
    )
    if kind in _SCOPE_COLUMNS:
        booked = booked.where(_SCOPE_COLUMNS[kind] == name)
    if worker is not None:
        booked = booked.where(requests.c.worker == worker)
    return booked.scalar_subquery()


class LeaseState(Struct, frozen=True, kw_only=True):
    """A process's lease of one counter as it should be, in totals: writing it twice is once."""

    owner: str
    outstanding: int
    """Reserved for the owner's requests under way and for its next ones."""
    spent: int
    overrun: int
    """Both since the lease began."""
    known_spent: int = 0
    known_overrun: int = 0
    """What is booked for certain, should the lease's row be gone."""


async def book(
    connection: "AsyncConnection", counter: Counter, lease: LeaseState, *, now_us: int, ttl_us: int
) -> Spend:
    """Bring the counter and the lease's row to `lease`; the counter stays locked until commit.

    Returns:
        The counter afterwards.
    """
    c = budget_spend.c
    await _lock(connection, counter)
    mine = (_leased(counter), leases.c.owner == lease.owner)
    row = (
        await connection.execute(
            select(leases.c.nano_usd, leases.c.spent_nano_usd, leases.c.overrun_nano_usd).where(
                *mine
            )
        )
    ).first()
    nano, spent, overrun = row or (0, lease.known_spent, lease.known_overrun)
    values = {
        "nano_usd": lease.outstanding,
        "spent_nano_usd": lease.spent,
        "overrun_nano_usd": lease.overrun,
        "expires_us": now_us + ttl_us,
    }
    if row is None:
        await connection.execute(
            insert(leases).values(
                scope=counter.scope,
                window=counter.window,
                window_start_us=counter.start_us,
                owner=lease.owner,
                created_us=now_us,
                **values,
            )
        )
    else:
        await connection.execute(update(leases).where(*mine).values(**values))
    changed = await connection.execute(
        update(budget_spend)
        .where(_is(counter))
        .values(
            spent_nano_usd=c.spent_nano_usd + (lease.spent - spent),
            overrun_nano_usd=c.overrun_nano_usd + (lease.overrun - overrun),
            reserved_nano_usd=c.reserved_nano_usd + (lease.outstanding - nano),
        )
        .returning(c.spent_nano_usd, c.reserved_nano_usd, c.overrun_nano_usd)
    )
    after = changed.one()
    return Spend(spent=after[0], reserved=after[1], overrun=after[2])


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
    statement = update(budget_spend).where(_is(counter))
    if limit_nano_usd is not None:
        taken = c.spent_nano_usd + c.overrun_nano_usd + c.reserved_nano_usd
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


async def extend(connection: "AsyncConnection", owner: str, expires_us: int) -> None:
    """A live process keeps its leases."""
    await connection.execute(
        update(leases).where(leases.c.owner == owner).values(expires_us=expires_us)
    )


async def reap(connection: "AsyncConnection", now_us: int) -> int:
    """End the leases of processes that died; how many.

    What the dead process answered stands in the ledger under its name, also what it had not booked
    yet; the rest of its slice returns.
    """
    rows: Sequence[Any] = (
        await connection.execute(
            select(leases)
            .where(leases.c.expires_us < now_us)
            .order_by(leases.c.scope, leases.c.window, leases.c.window_start_us)
        )
    ).all()
    ended = 0
    for row in rows:
        ended += await _reap_one(connection, row, now_us)
    return ended


async def _reap_one(connection: "AsyncConnection", lease: Any, now_us: int) -> bool:
    counter = Counter(lease.scope, lease.window, lease.window_start_us)
    await _lock(connection, counter)
    gone = await connection.execute(
        delete(leases)
        .where(_leased(counter), leases.c.owner == lease.owner, leases.c.expires_us < now_us)
        .returning(leases.c.nano_usd, leases.c.spent_nano_usd, leases.c.overrun_nano_usd)
    )
    row = gone.first()
    if row is None:
        return False  # another process was quicker, or the owner lives after all
    held, booked = row[0], row[1] + row[2]
    since_us = max(counter.start_us, lease.created_us - _BEFORE_LEASE_US)
    answered = select(_booked(counter, since_us=since_us, worker=lease.owner))
    missing = max(int((await connection.execute(answered)).scalar_one()) - booked, 0)
    within = min(missing, held)
    c = budget_spend.c
    await connection.execute(
        update(budget_spend)
        .where(_is(counter))
        .values(
            spent_nano_usd=c.spent_nano_usd + within,
            overrun_nano_usd=c.overrun_nano_usd + (missing - within),
            reserved_nano_usd=c.reserved_nano_usd - held,
        )
    )
    return True


async def _lock(connection: "AsyncConnection", counter: Counter) -> None:
    """A write that changes nothing: both databases let only one transaction past it."""
    await connection.execute(
        update(budget_spend)
        .where(_is(counter))
        .values(spent_nano_usd=budget_spend.c.spent_nano_usd)
    )


def _leased(counter: Counter) -> ColumnElement[bool]:
    return and_(
        leases.c.scope == counter.scope,
        leases.c.window == counter.window,
        leases.c.window_start_us == counter.start_us,
    )


def _is(counter: Counter) -> ColumnElement[bool]:
    return and_(
        budget_spend.c.scope == counter.scope,
        budget_spend.c.window == counter.window,
        budget_spend.c.window_start_us == counter.start_us,
    )
