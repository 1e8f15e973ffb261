"""Refuse before spending: reservations against budgets, for the request path.

A caller without a budget costs nothing here. For the others a reservation is one transaction, in
which all that wait at that moment go together. Ending one never makes the request wait.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import BudgetReserved, BudgetSpent, GatewayError, Unavailable
from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, Counter, Spend
from gateway.ledger.keys import Caller
from gateway.ledger.money import usd_text
from policies.model import BudgetState

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = structlog.get_logger(__name__)

POLL_S = 1.0
"""How soon a new or changed budget is seen."""
LEASE_S = 30.0
"""How long a dead process's reservations stay taken."""
RETRY_AFTER_S = 1.0
MAX_GROUP = 64
_TRIES = 3
_NO_BUDGET = BudgetState()


class Reservation:
    """Money held for one request. End it once, by `settle` or `release`; a second end is nothing.

    Both return at once; the future they give may be awaited or forgotten, it never fails.
    """

    def __init__(
        self, budgets: "Budgets", request_id: str, nano_usd: int, counters: tuple[Counter, ...]
    ) -> None:
        self._budgets = budgets
        self.id = uuid.uuid4().hex
        self.request_id = request_id
        self.nano_usd = nano_usd
        self.counters = counters
        self._ended: asyncio.Future[None] | None = None

    def settle(self, actual_nano_usd: int) -> "asyncio.Future[None]":
        """Book what the request cost and give the rest back."""
        if self._ended is None:
            self._ended = self._budgets._end(self, actual_nano_usd)
        return self._ended

    def release(self) -> "asyncio.Future[None]":
        """Give everything back: nothing was used."""
        return self.settle(0)


class _Hold:
    """A reservation that waits for its transaction."""

    def __init__(self, reservation: Reservation, limits: list[tuple[Counter, Budget]]) -> None:
        self.reservation = reservation
        self.limits = limits
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _End:
    """The end of a reservation that waits for its transaction."""

    def __init__(self, reservation: Reservation, actual_nano_usd: int) -> None:
        self.reservation = reservation
        self.actual_nano_usd = actual_nano_usd
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Budgets:
    """One per gateway process.

    Args:
        clock: unix seconds; which window it is.
        owner: names this process in the reservations it holds.
    """

    def __init__(
        self,
        engine: "AsyncEngine",
        *,
        clock: Callable[[], float] = time.time,
        owner: str | None = None,
        poll_s: float = POLL_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._owner = owner or uuid.uuid4().hex
        self._poll_s = poll_s
        self._lease_s = lease_s
        self._by_scope: dict[str, list[Budget]] = {}
        self._spend: dict[Counter, Spend] = {}
        self._known: set[Counter] = set()
        self._waiting: list[_Hold | _End] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._warned: set[Counter] = set()
        self._error: str | None = None

    async def start(self) -> None:
        """Read the budgets; then keep them fresh and the reservations alive."""
        await self._guarded(self.refresh)
        self._tasks = [
            asyncio.create_task(self._commit_loop(), name="budget-committer"),
            asyncio.create_task(self._poll_loop(), name="budget-poller"),
        ]

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Write the ends that wait; reservations nobody ended expire."""
        self._closing = True
        self._wake.set()
        if self._tasks:
            committer, poller = self._tasks
            poller.cancel()
            await asyncio.wait({committer}, timeout=timeout_s)
            committer.cancel()
            await asyncio.gather(committer, poller, return_exceptions=True)
            self._tasks = []

    def state(self, caller: Caller) -> BudgetState:
        """What policies may ask of the caller's budgets; as fresh as the last poll."""
        if not self._by_scope:
            return _NO_BUDGET
        left = [
            _left(self._spend.get(counter, Spend()), budget)
            for counter, budget in self._limits(caller)
        ]
        return BudgetState(left=min(left)) if left else _NO_BUDGET

    async def reserve(
        self, caller: Caller, estimate_nano_usd: int, *, request_id: str | None = None
    ) -> Reservation:
        """Hold money for a request in all budgets of its caller, or in none.

        Args:
            estimate_nano_usd: the most it should cost; more is booked as overrun.
            request_id: finds the charges again if this process dies.

        Raises:
            BudgetSpent: it does not fit, and would not without the others' reservations either.
            BudgetReserved: only others' reservations are in the way.
            Unavailable: the database does not answer.
        """
        limits = self._limits(caller) if self._by_scope else []
        counters = tuple(counter for counter, _ in limits)
        nano_usd = min(max(estimate_nano_usd, 0), store.MAX_LIMIT_NANO_USD)
        reservation = Reservation(self, request_id or "", nano_usd, counters)
        if not limits:
            return reservation
        hold = _Hold(reservation, limits)
        self._enqueue(hold)
        try:
            await hold.done
        except asyncio.CancelledError:
            # it may be committed already; if it is not, its end finds nothing to end
            reservation.release()
            raise
        return reservation

    def report(self) -> dict[str, Any]:
        """For /health."""
        budgets = sum(map(len, self._by_scope.values()))
        return {"ok": self._error is None, "budgets": budgets, "error": self._error}

    def _limits(self, caller: Caller) -> list[tuple[Counter, Budget]]:
        scopes = [f"key:{caller.key_id}", f"team:{caller.team}", "global"]
        if caller.user is not None:
            scopes.append(f"user:{caller.user}")
        found = [budget for scope in scopes for budget in self._by_scope.get(scope, ())]
        now = self._clock() if found else 0.0
        return [(store.counter_of(budget, now), budget) for budget in found]

    def _end(self, reservation: Reservation, actual_nano_usd: int) -> "asyncio.Future[None]":
        end = _End(reservation, actual_nano_usd)
        if reservation.counters:
            self._enqueue(end)
        else:
            end.done.set_result(None)
        return end.done

    def _enqueue(self, op: _Hold | _End) -> None:
        self._waiting.append(op)
        self._wake.set()

    # The committer: all that wait, in one transaction

    async def _commit_loop(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            await self._commit(group)

    async def _commit(self, group: list[_Hold | _End]) -> None:
        for attempt in range(_TRIES):
            try:
                refusals = await self._transact(group)
            except (SQLAlchemyError, OSError) as error:
                self._note(error)
                await asyncio.sleep(0.02 * 4**attempt)
                continue
            self._error = None
            for op, refusal in zip(group, refusals, strict=True):
                if not op.done.done():
                    op.done.set_exception(refusal) if refusal else op.done.set_result(None)
            return
        for op in group:
            if isinstance(op, _Hold) and not op.done.done():
                op.done.set_exception(Unavailable("Budgets cannot be checked right now."))
        self._waiting[:0] = [op for op in group if isinstance(op, _End)]

    async def _transact(self, group: list[_Hold | _End]) -> list[GatewayError | None]:
        refusals: list[GatewayError | None] = []
        async with self._engine.begin() as connection:
            touched = {counter for op in group for counter in op.reservation.counters}
            wanted = {c for op in group if isinstance(op, _Hold) for c in op.reservation.counters}
            for counter in sorted(wanted - self._known, key=_order):
                await store.ensure_counter(connection, counter)
            await store.lock(connection, touched)
            for op in group:
                if isinstance(op, _End):
                    await self._apply_end(connection, op)
                    refusals.append(None)
                elif op.done.cancelled():
                    refusals.append(None)
                else:
                    refusals.append(await self._apply_hold(connection, op))
        self._known |= wanted
        return refusals

    async def _apply_end(self, connection: "AsyncConnection", op: _End) -> None:
        for counter in op.reservation.counters:
            await store.let_go(
                connection,
                counter,
                op.reservation.id,
                held_nano_usd=op.reservation.nano_usd,
                actual_nano_usd=op.actual_nano_usd,
            )

    async def _apply_hold(self, connection: "AsyncConnection", op: _Hold) -> GatewayError | None:
        held: list[Counter] = []
        for counter, budget in op.limits:
            if await self._hold(connection, op, counter, budget):
                held.append(counter)
                continue
            for earlier in held:
                await store.let_go(
                    connection,
                    earlier,
                    op.reservation.id,
                    held_nano_usd=op.reservation.nano_usd,
                    actual_nano_usd=0,
                )
            spend = await store.read_spend(connection, [counter])
            return _refusal(budget, spend.get(counter, Spend()), op.reservation.nano_usd)
        return None

    async def _hold(
        self, connection: "AsyncConnection", op: _Hold, counter: Counter, budget: Budget
    ) -> bool:
        return await store.hold(
            connection,
            counter,
            op.reservation.nano_usd,
            soft=budget.soft,
            reservation_id=op.reservation.id,
            request_id=op.reservation.request_id,
            owner=self._owner,
            expires_us=round((time.time() + self._lease_s) * 1e6),
        )

    # Keeping fresh

    async def _poll_loop(self) -> None:
        beat_at = 0.0
        while True:
            await asyncio.sleep(self._poll_s)
            await self._guarded(self.refresh)
            if self._by_scope and time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self._lease_s / 3
                await self._guarded(self._beat)

    async def refresh(self) -> None:
        """Read budgets and counters now."""
        async with self._engine.connect() as connection:
            found = await store.list_budgets(connection)
            now = self._clock()
            counters = {store.counter_of(budget, now): budget for budget in found}
            spend = await store.read_spend(connection, list(counters)) if counters else {}
        by_scope: dict[str, list[Budget]] = {}
        for budget in found:
            by_scope.setdefault(budget.scope, []).append(budget)
        self._by_scope, self._spend = by_scope, spend
        self._known &= set(spend)
        self._warn(counters)

    async def _beat(self) -> None:
        now = time.time()
        async with self._engine.begin() as connection:
            await store.extend(connection, self._owner, round((now + self._lease_s) * 1e6))
        async with self._engine.begin() as connection:
            ended = await store.reap(connection, round(now * 1e6))
        if ended:
            log.warning("reservations_reaped", count=ended)

    def _warn(self, counters: dict[Counter, Budget]) -> None:
        """Say once per window that a soft budget is passed."""
        self._warned &= set(counters)
        for counter, budget in counters.items():
            spend = self._spend.get(counter, Spend())
            passed = spend.spent + spend.overrun >= budget.limit_nano_usd
            if budget.soft and passed and counter not in self._warned:
                self._warned.add(counter)
                log.warning(
                    "soft_budget_passed",
                    scope=budget.scope,
                    window=budget.window,
                    limit_usd=usd_text(budget.limit_nano_usd),
                    spent_usd=usd_text(spend.spent + spend.overrun),
                )

    async def _guarded(self, work: Callable[[], Any]) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            try:
                await work()
            except (SQLAlchemyError, OSError) as error:
                self._note(error)

    def _note(self, error: Exception) -> None:
        if self._error is None:
            log.error("budgets_unavailable", error=str(error)[:300])
        self._error = f"{type(error).__name__}: {str(error)[:300]}"


def _refusal(budget: Budget, spend: Spend, nano_usd: int) -> GatewayError:
    which = f"budget {budget.scope} per {budget.window}"
    limit = usd_text(budget.limit_nano_usd)
    spent = spend.spent + spend.overrun
    if spent + nano_usd > budget.limit_nano_usd:
        return BudgetSpent(
            f"The {which} of ${limit} has ${usd_text(max(budget.limit_nano_usd - spent, 0))} left; "
            f"this request may cost ${usd_text(nano_usd)}."
        )
    return BudgetReserved(
        f"The {which} of ${limit} is taken up by requests under way; try again shortly.",
        retry_after_s=RETRY_AFTER_S,
    )


def _left(spend: Spend, budget: Budget) -> float:
    """The fraction of a budget that is not taken, 0 to 1."""
    taken = min(max(spend.taken, 0), budget.limit_nano_usd)
    return float(1 - Fraction(taken, budget.limit_nano_usd))


def _order(counter: Counter) -> tuple[str, str, int]:
    return counter.scope, counter.window, counter.start_us
