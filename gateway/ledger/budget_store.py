"""The SQL of budgets: limits, counters and reservations, correct across processes.

One rule carries it: money is reserved by `UPDATE … SET reserved = reserved + x WHERE spent +
overrun + reserved + x <= limit`, which the database runs one at a time per counter, so no number of
processes can pass a limit together. Invariant: spent + reserved ≤ limit; what a request cost beyond
its reservation is `overrun`, apart, and counts when the next one asks.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import ColumnElement, ScalarSelect, and_, delete, func, insert, or_, select, update

from gateway.ledger.database import insert_once
from gateway.ledger.money import MAX_NANO_USD, usd_text
from gateway.ledger.tables import budget_spend, budgets, charges, requests, reservations
from gateway.ledger.windows import WINDOWS, window_start_us

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MAX_LIMIT_NANO_USD = MAX_NANO_USD // 4
"""So that no sum in SQL can leave BIGINT."""
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


def _booked(counter: Counter) -> ScalarSelect[Any]:
    """What the ledger has booked in the counter's scope and window."""
    kind, _, name = counter.scope.partition(":")
    booked = (
        select(func.coalesce(func.sum(charges.c.cost_nano_usd), 0))
        .join(requests, requests.c.request_id == charges.c.request_id)
        .where(requests.c.started_us >= counter.start_us)
    )
    if kind in _SCOPE_COLUMNS:
        booked = booked.where(_SCOPE_COLUMNS[kind] == name)
    return booked.scalar_subquery()


async def lock(connection: "AsyncConnection", counters: Iterable[Counter]) -> None:
    """Lock counters in one order, so that two processes cannot wait for each other.

    SQLite has one writer at a time and needs nothing.
    """
    wanted = list(counters)
    if connection.dialect.name == "postgresql" and wanted:
        await connection.execute(
            select(budget_spend.c.scope)
            .where(or_(*map(_is, wanted)))
            .order_by(budget_spend.c.scope, budget_spend.c.window, budget_spend.c.window_start_us)
            .with_for_update()
        )


async def hold(
    connection: "AsyncConnection",
    counter: Counter,
    nano_usd: int,
    *,
    soft: bool,
    reservation_id: str,
    request_id: str,
    owner: str,
    expires_us: int,
) -> bool:
    """Reserve money; False if it does not fit under the limit (a soft one always fits)."""
    c = budget_spend.c
    statement = update(budget_spend).where(_is(counter))
    if not soft:
        known = (
            select(func.min(budgets.c.limit_nano_usd))
            .where(budgets.c.scope == counter.scope, budgets.c.window == counter.window)
            .scalar_subquery()
        )
        limit = func.coalesce(known, MAX_NANO_USD)  # removed a moment ago
        taken = c.spent_nano_usd + c.overrun_nano_usd + c.reserved_nano_usd
        statement = statement.where(taken + nano_usd <= limit)
    done = await connection.execute(
        statement.values(reserved_nano_usd=c.reserved_nano_usd + nano_usd)
    )
    if done.rowcount == 0:
        return False
    await connection.execute(
        insert(reservations).values(
            id=reservation_id,
            scope=counter.scope,
            window=counter.window,
            window_start_us=counter.start_us,
            nano_usd=nano_usd,
            request_id=request_id,
            owner=owner,
            expires_us=expires_us,
        )
    )
    return True


async def let_go(
    connection: "AsyncConnection",
    counter: Counter,
    reservation_id: str,
    *,
    held_nano_usd: int,
    actual_nano_usd: int,
) -> bool:
    """End a reservation and book what the request cost; False if it had been ended before."""
    c = budget_spend.c
    ended = await connection.execute(
        delete(reservations).where(
            reservations.c.id == reservation_id,
            reservations.c.scope == counter.scope,
            reservations.c.window == counter.window,
        )
    )
    if ended.rowcount == 0:
        return False
    within = min(actual_nano_usd, held_nano_usd)
    await connection.execute(
        update(budget_spend)
        .where(_is(counter))
        .values(
            reserved_nano_usd=c.reserved_nano_usd - held_nano_usd,
            spent_nano_usd=c.spent_nano_usd + within,
            overrun_nano_usd=c.overrun_nano_usd + (actual_nano_usd - within),
        )
    )
    return True


async def extend(connection: "AsyncConnection", owner: str, expires_us: int) -> None:
    """A live process keeps its reservations."""
    await connection.execute(
        update(reservations).where(reservations.c.owner == owner).values(expires_us=expires_us)
    )


async def reap(connection: "AsyncConnection", now_us: int) -> int:
    """End the reservations of processes that died; how many.

    Booked is what the ledger knows of the request, else the reservation in full: its backend did
    work that nobody will report any more.
    """
    rows: Sequence[Any] = (
        await connection.execute(select(reservations).where(reservations.c.expires_us < now_us))
    ).all()
    counters = {Counter(row.scope, row.window, row.window_start_us) for row in rows}
    await lock(connection, counters)
    ended = 0
    for row in rows:
        known = await connection.execute(
            select(requests.c.cost_nano_usd).where(requests.c.request_id == row.request_id)
        )
        cost = known.scalar_one_or_none()
        ended += await let_go(
            connection,
            Counter(row.scope, row.window, row.window_start_us),
            row.id,
            held_nano_usd=row.nano_usd,
            actual_nano_usd=row.nano_usd if cost is None else cost,
        )
    return ended


def _is(counter: Counter) -> ColumnElement[bool]:
    return and_(
        budget_spend.c.scope == counter.scope,
        budget_spend.c.window == counter.window,
        budget_spend.c.window_start_us == counter.start_us,
    )
