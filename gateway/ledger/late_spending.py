"""What turns up after a request's end, counted in its budgets: late charges and corrections.

A request counts in the windows in which it started. What the process that answered it finds out
later goes through that process's slices; what an operator corrects goes straight to the counters,
in the correction's own transaction, as does what a process that died had not heard of budgets for.
More than a limit has room for is overrun.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, BudgetId, Counter
from gateway.ledger.lease_store import counts_all_of, lock_anchor, window_spend
from gateway.ledger.records import ChargeRecord, RequestRecord
from gateway.ledger.tables import budget_spend
from gateway.ledger.windows import rolls

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


def by_backend(charges: Iterable[ChargeRecord]) -> dict[str, int]:
    """What budgets count of charges: nano-dollars by backend, without the operator's own."""
    found: dict[str, int] = {}
    for charge in charges:
        if charge.kind not in store.NOT_CHARGED:
            found[charge.backend] = found.get(charge.backend, 0) + charge.cost_nano_usd
    return found


class Correction:
    """A change of what requests cost, in all counters that they are in.

    The counters are locked before the ledger's rows are written, so that a counter that is being
    made meanwhile has the old rows or the new ones, never half.
    """

    def __init__(self, counters: Sequence[tuple[Counter, Budget, Counter]]) -> None:
        self._counters = counters
        """Each with its budget, and the window that says how much room there is."""

    @classmethod
    async def begin(
        cls, connection: "AsyncConnection", request: RequestRecord, *, now: float
    ) -> "Correction":
        """Lock the counters of the request's windows.

        Args:
            request: under its team's and user's names.
            now: unix seconds.
        """
        found = await _counters_of(connection, request, now)
        for counter, budget, _ in found:
            if counter == store.counter_of(budget, now):
                await store.ensure_counter(connection, counter)
            await _lock(connection, counter)
        return cls(found)

    async def apply(self, connection: "AsyncConnection", changes: Mapping[str, int]) -> None:
        """Add to what is spent, or take back.

        Args:
            changes: nano-dollars by backend.
        """
        for counter, budget, current in self._counters:
            nano_usd = _concerning(counter, changes)
            if nano_usd:
                await _add(connection, counter, nano_usd, budget, current)


async def count_unheard(
    connection: "AsyncConnection",
    request: RequestRecord,
    cost: Mapping[str, int],
    missed: Set[BudgetId],
    *,
    now: float,
) -> int:
    """Count a row that SQL has in budgets that its process had not heard of.

    Not where that has a lease which counts it when it ends, nor in windows that have no counter
    yet: they will begin with what SQL has.

    Args:
        request: under its team's and user's names.
        cost: nano-dollars by backend.
        now: unix seconds.

    Returns:
        What no limit had room for, nano-dollars; of several budgets the most.
    """
    beyond, started_us = 0, round(request.started_at * 1e6)
    for counter, budget, current in await _counters_of(connection, request, now):
        nano_usd = _concerning(counter, cost)
        if not nano_usd or budget.id not in missed:
            continue
        await _lock(connection, counter)
        if not await counts_all_of(connection, counter, request.worker, started_us):
            beyond = max(beyond, await _add(connection, counter, nano_usd, budget, current))
    return beyond


async def _counters_of(
    connection: "AsyncConnection", request: RequestRecord, now: float
) -> list[tuple[Counter, Budget, Counter]]:
    """Of a request's windows, in the order in which to lock them; with what `Correction` takes."""
    scopes = store.scopes_of(
        team=request.team, key=request.key, user=request.user, tags=request.tags
    )
    found = []
    for budget in await store.list_budgets(connection):
        if budget.scope in scopes or budget.scope.startswith("model:"):
            counter = store.counter_of(budget, request.started_at)
            current = store.counter_of(budget, now)
            found.append((counter, budget, current if rolls(budget.window) else counter))
    return sorted(found, key=lambda one: store.order(one[0]))


async def _lock(connection: "AsyncConnection", counter: Counter) -> None:
    await store.lock(connection, counter)
    if rolls(counter.window):
        await lock_anchor(connection, counter)


def _concerning(counter: Counter, nano_usd: Mapping[str, int]) -> int:
    """What counts there of amounts by backend."""
    kind, _, name = counter.scope.partition(":")
    return nano_usd.get(name, 0) if kind == "model" else sum(nano_usd.values())


async def _add(
    connection: "AsyncConnection",
    counter: Counter,
    nano_usd: int,
    budget: Budget,
    current: Counter,
) -> int:
    """How much of it no limit had room for."""
    row: Any = (
        await connection.execute(select(budget_spend).where(store.is_counter(counter)))
    ).first()
    if row is None:
        return 0  # a window that nobody counts any more, or yet
    spent, overrun = row.spent_nano_usd, row.overrun_nano_usd
    if nano_usd < 0:
        of_overrun = min(overrun, -nano_usd)
        overrun -= of_overrun
        spent = max(spent + nano_usd + of_overrun, 0)
    else:
        taken = (await window_spend(connection, current)).taken
        within = nano_usd if budget.soft else min(nano_usd, max(budget.limit_nano_usd - taken, 0))
        spent, overrun = spent + within, overrun + nano_usd - within
    await connection.execute(
        update(budget_spend)
        .where(store.is_counter(counter))
        .values(spent_nano_usd=spent, overrun_nano_usd=overrun)
    )
    beyond: int = max(overrun - row.overrun_nano_usd, 0)
    return beyond
