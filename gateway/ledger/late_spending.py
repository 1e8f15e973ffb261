"""What was held against no budget and counts there all the same.

A request counts in the windows in which it started. What the process that answered it finds out
later goes through that process's slices; what an operator corrects goes straight to the counters,
in the correction's own transaction. So does a row whose process had not heard of a budget yet.
More than a limit has room for is overrun.

A new budget begins with what the ledger has of its window. What was answered in the last two
seconds is not there yet, and processes hear of the budget up to a second later: such a request
stands in no slice. So each row says which the youngest budget was that its process knew, and the
transaction that writes it counts it in all that are younger. Budgets are made one after another,
while no batch is written, so every row is in the sum or counted here, never both, whoever dies.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, Counter
from gateway.ledger.database_clock import now_of
from gateway.ledger.lease_store import Answered, lock_anchor, note_counted, window_spend
from gateway.ledger.overruns import add_overrun
from gateway.ledger.records import ChargeRecord, RequestRecord, Settlement
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
        found = _counters_of(await store.list_budgets(connection), request, now)
        for counter, budget, _ in found:
            await _lock(connection, counter, budget, now)
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


class Missed:
    """Rows that are about to be written, in budgets that were made since they began.

    Those that they were not held against count them here. Those that they were held against have
    them in a lease, which does not expect it of rows that began before its budget. As with
    corrections, counters are locked before rows are written.
    """

    def __init__(self, rows: Mapping[str, Settlement], now: float) -> None:
        self._rows = rows
        """By request, under their teams' and users' names."""
        self._now = now
        self._counters: dict[Counter, tuple[Budget, Counter]] = {}
        """In the order in which they are locked; with what `_add` takes."""
        self._by_counter: dict[Counter, set[str]] = {}
        """Ids of requests."""

    @classmethod
    async def begin(
        cls, connection: "AsyncConnection", batch: Sequence[Settlement], youngest_us: int
    ) -> "Missed | None":
        """Lock the counters in which any of a batch may be missing; None: there are none.

        Args:
            youngest_us: when the last budget was made.
        """
        since = {
            one.request.request_id: (one, min(one.heeded_us, round(one.request.started_at * 1e6)))
            for one in batch
            if one.heeded_us is not None
        }
        since = {name: its for name, its in since.items() if its[1] < youngest_us}
        if not since:
            return None
        oldest = min(since_us for _, since_us in since.values())
        budgets = [b for b in await store.list_budgets(connection) if b.created_us > oldest]
        missed = cls({name: one for name, (one, _) in since.items()}, await now_of(connection))
        for name, (one, since_us) in since.items():
            for counter, budget, current in _counters_of(budgets, one.request, missed._now):
                if budget.created_us > since_us:
                    missed._counters[counter] = (budget, current)
                    missed._by_counter.setdefault(counter, set()).add(name)
        for counter in sorted(missed._counters, key=store.order):
            await _lock(connection, counter, missed._counters[counter][0], missed._now)
        return missed

    async def count(self, connection: "AsyncConnection", written: Sequence[Settlement]) -> None:
        """Count what was new of the batch, in the transaction that writes it."""
        costs = {one.request.request_id: by_backend(one.charges) for one in written}
        beyond: dict[str, int] = {}
        for counter in sorted(self._counters, key=store.order):
            budget, current = self._counters[counter]
            by_owner: dict[str, list[Answered]] = {}
            missed: dict[str, int] = {}
            for name in sorted(self._by_counter[counter] & costs.keys()):
                one, nano_usd = self._rows[name], _concerning(counter, costs[name])
                assert one.heeded_us is not None, "begin took only such"
                held, request = budget.created_us <= one.heeded_us, one.request
                row = Answered(round(request.started_at * 1e6), nano_usd, held)
                by_owner.setdefault(request.worker, []).append(row)
                if not held:
                    missed[request.key] = missed.get(request.key, 0) + nano_usd
            for key, nano_usd in missed.items():
                over = await _add(connection, counter, nano_usd, budget, current)
                beyond[key] = max(beyond.get(key, 0), over)
            for worker, rows in by_owner.items():
                await note_counted(connection, counter, worker, rows)
        for key, nano_usd in sorted(beyond.items()):
            if nano_usd:
                await add_overrun(connection, key, nano_usd, now=self._now)


def _counters_of(
    budgets: Iterable[Budget], request: RequestRecord, now: float
) -> list[tuple[Counter, Budget, Counter]]:
    """Of a request's windows, in the order in which to lock them; with what `_add` takes."""
    scopes = store.scopes_of(
        team=request.team, key=request.key, user=request.user, tags=request.tags
    )
    found = []
    for budget in budgets:
        if budget.scope in scopes or budget.scope.startswith("model:"):
            counter = store.counter_of(budget, request.started_at)
            current = store.counter_of(budget, now)
            found.append((counter, budget, current if rolls(budget.window) else counter))
    return sorted(found, key=lambda one: store.order(one[0]))


async def _lock(
    connection: "AsyncConnection", counter: Counter, budget: Budget, now: float
) -> None:
    """Make the counter if its window runs, and lock it."""
    if counter == store.counter_of(budget, now):
        await store.ensure_counter(connection, counter)
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
