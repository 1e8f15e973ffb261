"""Refuse before spending: reservations against budgets, for the request path.

A caller without a budget costs nothing here. For the others this process leases slices of the
budgets from SQL (`gateway.ledger.leases`) and reserves against them in memory; only an empty slice
needs a transaction. Slices shrink as the limit comes near, and return when they are not used.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gateway.errors import GatewayError
from gateway.ledger import budget_store as store
from gateway.ledger.budget_alerts import Thresholds
from gateway.ledger.budget_store import Budget, Counter, Spend
from gateway.ledger.database_clock import DatabaseClock
from gateway.ledger.keys import Caller
from gateway.ledger.leases import BEATS_PER_LEASE, LEASE_S, Leases
from gateway.ledger.money import share
from gateway.ledger.overruns import Overruns
from gateway.ledger.slices import Reservation, Slice
from gateway.ledger.stamp import Stamp, beside
from policies.model import BudgetState

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log = structlog.get_logger(__name__)

SYNC_S = 0.2
"""How long an unused slice stays, and how soon its spending is booked in SQL…"""
SYNCS_PER_BOOKING = 5
"""… and that of a slice in use: of so many syncs by one."""
POLL_S = 1.0
"""How soon a new or changed budget is seen, when no stamp tells of it."""
_MAX_KNOWN_LIMITS = 4096
_NO_BUDGET = BudgetState()


class Budgets:
    """One per gateway process. All methods belong to the event loop's thread.

    Args:
        clock: unix seconds; which window it is. None: the database's own clock.
        stamp: the state folder's admin.stamp; None: beside a SQLite database.
        owner: names this process in its leases and its ledger rows.
    """

    def __init__(
        self,
        engine: "AsyncEngine",
        *,
        clock: Callable[[], float] | None = None,
        stamp: Path | None = None,
        owner: str | None = None,
        poll_s: float = POLL_S,
        sync_s: float = SYNC_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._engine = engine
        self._database_clock = DatabaseClock()
        self.clock = clock or self._database_clock
        """Unix seconds."""
        self._poll_s, self._sync_s, self._beat_s = poll_s, sync_s, lease_s / BEATS_PER_LEASE
        self._by_scope: dict[str, list[Budget]] = {}
        self.heeded_us = 0
        """When the youngest budget was made that counts what begins or is settled now."""
        self._known_limits: dict[tuple[Any, ...], list[tuple[Counter, Budget]]] = {}
        """Since the last refresh."""
        self._leases = Leases(engine, owner=owner, lease_s=lease_s)
        self._stamp = Stamp(stamp or beside(engine))
        self._tasks: list[asyncio.Task[None]] = []
        self._syncs = 0
        self._tagged = False
        """Whether any budget is on a tag."""
        self.overruns = Overruns(engine)
        self._thresholds = Thresholds(engine)

    async def start(self) -> None:
        """Read the budgets; then keep them fresh and the leases alive."""
        await self._leases.guarded(self.refresh)
        self._tasks = [
            asyncio.create_task(self._every(self._sync_s, self._sync), name="budget-sync"),
            asyncio.create_task(self._every(self._poll_s, self.refresh), name="budget-poll"),
            asyncio.create_task(self._every(self._beat_s, self.beat), name="budget-beat"),
        ]

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Book what was spent and return the slices; what cannot be booked now, a reaper will."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._leases.return_all(self._tasks)
                await self._leases.guarded(self.overruns.write)
        except TimeoutError:
            log.warning("budgets_not_booked", error=self._leases.error)
        self._tasks = []

    def state(self, caller: Caller, tags: Mapping[str, str] | None = None) -> BudgetState:
        """What policies may ask of the caller's budgets; as fresh as the last poll."""
        if not self._by_scope:
            return _NO_BUDGET
        limits = self._limits(caller, tags)
        if not limits:
            return _NO_BUDGET
        left, policy, leases = 1.0, None, self._leases
        for counter, budget in limits:
            its = _left(leases.spend.get(counter, Spend()), leases.slices.get(counter), budget)
            left = min(left, its)
            percent = budget.downgrade_percent
            if percent is not None and (1.0 - its) * 100 >= percent:
                policy = budget.downgrade_policy
        return BudgetState(left=left, policy=policy)

    async def reserve(
        self,
        caller: Caller,
        estimate_nano_usd: int,
        *,
        request_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Reservation:
        """Hold money for a request in all budgets of its caller, or in none.

        Args:
            estimate_nano_usd: the most it should cost; more is booked as overrun.
            request_id: for the log.
            tags: the request's.

        Raises:
            BudgetSpent: it does not fit, and would not without the others' reservations either.
            BudgetReserved: only others' reservations are in the way.
            BudgetUnavailable: a hard budget's slice is empty and the database does not answer.
        """
        if self._stamp.changed():
            await self._leases.guarded(self.refresh)
        limits = self._limits(caller, tags) if self._by_scope else ()
        nano_usd = min(max(estimate_nano_usd, 0), store.MAX_LIMIT_NANO_USD)
        heeded_us = self.heeded_us
        if not limits:
            return Reservation(nano_usd, (), heeded_us=heeded_us)
        held = await self._leases.hold(limits, nano_usd, request_id)
        return Reservation(nano_usd, held, limits, heeded_us=heeded_us)

    async def concern(
        self, caller: Caller, tags: Mapping[str, str], backends: Sequence[str]
    ) -> bool:
        """Whether any budget stands behind such a request; without budgets it costs nothing."""
        if self._stamp.changed():
            await self._leases.guarded(self.refresh)
        if not self._by_scope:
            return False
        return bool(self._limits(caller, tags)) or any(map(self.limits_model, backends))

    async def extend(self, reservation: Reservation, nano_usd: int, backend: str) -> None:
        """Hold more for a request under way, also in the budgets of its backend. Raises as above.

        Args:
            nano_usd: how much more.
        """
        of_model = reservation.models.get(backend)
        more_of_model = 0
        if of_model is not None:
            more_of_model = max(reservation.nano_usd + nano_usd - of_model.nano_usd, 0)
            await self._leases.hold(of_model.limits, more_of_model, None)
            of_model.nano_usd += more_of_model
        if reservation.limits:
            await self._leases.hold(reservation.limits, nano_usd, None)
        reservation.nano_usd += nano_usd

    async def reserve_models(
        self, estimates: Mapping[str, int], *, request_id: str | None = None
    ) -> tuple[dict[str, Reservation], GatewayError | None]:
        """Hold money in the budgets of the backends that may answer.

        Args:
            estimates: nano-dollars by backend.

        Returns:
            What is held, by backend; one without a budget is missing. And why a backend that is
            in neither had no room, if there is one.
        """
        held: dict[str, Reservation] = {}
        refusal: GatewayError | None = None
        for name, nano_usd in estimates.items():
            budgets = self._by_scope.get(f"model:{name}")
            if not budgets:
                continue
            now = self.clock()
            limits = [(store.counter_of(budget, now), budget) for budget in budgets]
            try:
                slices = await self._leases.hold(limits, nano_usd, request_id)
            except GatewayError as error:
                refusal = error
            else:
                held[name] = Reservation(nano_usd, slices, limits)
        return held, refusal

    def limits_model(self, name: str) -> bool:
        """Whether a budget stands on that backend."""
        return f"model:{name}" in self._by_scope

    def add(
        self, caller: Caller, tags: Mapping[str, str], changes: Mapping[str, int], *, at: float
    ) -> None:
        """Count what a request cost beside its reservation, or without one.

        Args:
            changes: nano-dollars by backend.
            at: unix seconds; when the request started.
        """
        short = []
        for counter, budget, nano_usd in self._concerned(caller, tags, changes, at):
            part = self._leases.slice_of(counter)
            if part.free >= nano_usd:
                part.spend(nano_usd)
            else:
                short.append((counter, budget, nano_usd))
        if short:
            self._leases.in_background(self._add(short, caller.key_id))

    async def lease(
        self, caller: Caller, tags: Mapping[str, str], changes: Mapping[str, int], *, at: float
    ) -> None:
        """See that this process has leases in all budgets that `add` will count this in.

        Then what the ledger has in its name is counted even if it dies before it counts it.
        """
        for counter, _, _ in self._concerned(caller, tags, changes, at):
            part = self._leases.slice_of(counter)
            part.used = True
            if not part.leased:
                await self._leases.lease_now(counter, part)

    def _concerned(
        self, caller: Caller, tags: Mapping[str, str], changes: Mapping[str, int], at: float
    ) -> list[tuple[Counter, Budget, int]]:
        """What to count in which window."""
        together = sum(changes.values())
        if not self._by_scope or not together:
            return []
        found = [(*pair, together) for pair in self._find_limits(caller, tags.items(), at)]
        for name, nano_usd in changes.items():
            for budget in self._by_scope.get(f"model:{name}", ()):
                found.append((store.counter_of(budget, at), budget, nano_usd))
        return found

    async def _add(self, found: Sequence[tuple[Counter, Budget, int]], key: str) -> None:
        """What no limit has room for is overrun."""
        beyond = 0
        for counter, budget, nano_usd in found:
            try:
                (part,) = await self._leases.hold([(counter, budget)], nano_usd, None)
            except GatewayError:
                beyond = max(beyond, nano_usd)
                part = self._leases.slice_of(counter)
                part.overrun += nano_usd
                # There may be no lease that would tell of it if we died.
                await self._leases.lease_now(counter, part)
            else:
                part.held -= nano_usd
                part.spend(nano_usd)
        if beyond:
            self.overruns.note(key, beyond, self.clock())

    def report(self) -> dict[str, Any]:
        """For /health."""
        budgets = sum(map(len, self._by_scope.values()))
        return {"ok": self._leases.error is None, "budgets": budgets, "error": self._leases.error}

    def _limits(
        self, caller: Caller, tags: Mapping[str, str] | None = None
    ) -> list[tuple[Counter, Budget]]:
        """Counters and budgets that a request falls under, in the order in which to lock them."""
        now = self.clock()  # windows begin with a minute, so for all of it the answer is the same
        tagged = tuple(tags.items()) if tags and self._tagged else ()
        key = (caller.key_id, caller.team, caller.user, tagged, now // 60)
        known = self._known_limits.get(key)
        if known is None:
            if len(self._known_limits) >= _MAX_KNOWN_LIMITS:
                self._known_limits.clear()
            known = self._known_limits[key] = self._find_limits(caller, tagged, now)
        return known

    def _find_limits(
        self, caller: Caller, tags: Iterable[tuple[str, str]], now: float
    ) -> list[tuple[Counter, Budget]]:
        scopes = store.scopes_of(
            team=caller.team, key=caller.key_id, user=caller.user, tags=dict(tags)
        )
        found = [budget for scope in scopes for budget in self._by_scope.get(scope, ())]
        limits = [(store.counter_of(budget, now), budget) for budget in found]
        if len(limits) > 1:
            limits.sort(key=lambda pair: store.order(pair[0]))
        return limits

    async def sync(self) -> None:
        """Book what was spent since the last time, and return slices that nobody used."""
        await self.overruns.write()
        await self._leases.sync()

    async def _sync(self) -> None:
        """The same, seldom of slices in use: each takes a transaction."""
        self._syncs += 1
        await self.overruns.write()
        await self._leases.sync(busy=self._syncs % SYNCS_PER_BOOKING == 0)

    async def beat(self) -> None:
        """Extend this process's leases, and end those of dead ones."""
        await self._leases.beat()

    async def end_leases(self, dead: str) -> int:
        """End the leases of a process that died and whose requests all stand in the ledger."""
        return await self._leases.end(dead)

    async def refresh(self) -> None:
        """Read budgets and counters now."""
        async with self._engine.connect() as connection:
            await self._database_clock.read(connection)
            found = await store.list_budgets(connection)
            now = self.clock()
            counters = {store.counter_of(budget, now): budget for budget in found}
            spend = await store.read_spend(connection, list(counters)) if counters else {}
        by_scope: dict[str, list[Budget]] = {}
        for budget in found:
            by_scope.setdefault(budget.scope, []).append(budget)
        self._by_scope, self._leases.spend = by_scope, spend
        self.heeded_us = max((budget.created_us for budget in found), default=0)
        self._known_limits.clear()
        self._tagged = any(scope.startswith("tag:") for scope in by_scope)
        self._leases.refused &= counters.keys()
        await self._thresholds.tell(counters, spend, self._leases.refused)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._leases.guarded(work)


def _left(spend: Spend, own: Slice | None, budget: Budget) -> float:
    """The fraction of a budget that is not taken, 0 to 1; our unused slice is not taken."""
    taken = spend.taken - (max(own.free, 0) if own else 0)
    taken = min(max(taken, 0), budget.limit_nano_usd)
    return share(budget.limit_nano_usd - taken, budget.limit_nano_usd)
