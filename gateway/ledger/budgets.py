"""Refuse before spending: reservations against budgets, for the request path.

A caller without a budget costs nothing here. For the others this process leases slices of the
budgets from SQL and reserves against them in memory; only an empty slice needs a transaction.
Slices shrink as the limit comes near, and return when they are not used.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import BudgetReserved, BudgetSpent, BudgetUnavailable, GatewayError
from gateway.ledger import budget_store as store
from gateway.ledger import lease_store
from gateway.ledger.budget_alerts import Thresholds
from gateway.ledger.budget_store import Budget, Counter, Spend
from gateway.ledger.database_clock import DatabaseClock
from gateway.ledger.keys import Caller
from gateway.ledger.lease_store import LeaseState
from gateway.ledger.money import share, usd_text
from gateway.ledger.overruns import Overruns
from gateway.ledger.slices import Reservation, Slice
from gateway.ledger.stamp import Stamp, beside
from gateway.ledger.worker_id import worker_id
from policies.model import BudgetState

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = structlog.get_logger(__name__)

SYNC_S = 0.2
"""How often spending is booked in SQL, and how long an unused slice stays."""
POLL_S = 1.0
"""How soon a new or changed budget is seen, when no stamp tells of it."""
LEASE_S = 20.0
"""How long a silent process keeps its slices."""
BEATS_PER_LEASE = 4
"""So a dead one's return after a lease and a beat, within 25 s; on its own host much sooner."""
RETRY_AFTER_S = 1.0
_SLICES = 64
"""A slice is at most this part of the limit…"""
_NEAR = 8
"""… and at most this part of what is left."""
_TRIES = 3
_BEATS_PER_SWEEP = 120
_QUIET_SYNCS = 600
"""How long the slice of a window that is over stays: late charges may still come to it."""
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
        self._owner = owner or worker_id()
        self._poll_s, self._sync_s, self._lease_s = poll_s, sync_s, lease_s
        self._by_scope: dict[str, list[Budget]] = {}
        self._known_limits: dict[tuple[Any, ...], list[tuple[Counter, Budget]]] = {}
        """Since the last refresh."""
        self._spend: dict[Counter, Spend] = {}
        self._slices: dict[Counter, Slice] = {}
        self._stamp = Stamp(stamp or beside(engine))
        self._sql = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._tagged = False
        """Whether any budget is on a tag."""
        self.overruns = Overruns(engine)
        self._thresholds = Thresholds(engine)
        self._beats = 0
        self._silent = False
        """Whether the last beat failed."""
        self._error: str | None = None

    async def start(self) -> None:
        """Read the budgets; then keep them fresh and the leases alive."""
        await self._guarded(self.refresh)
        beat_s = self._lease_s / BEATS_PER_LEASE
        self._tasks = [
            asyncio.create_task(self._every(self._sync_s, self.sync), name="budget-sync"),
            asyncio.create_task(self._every(self._poll_s, self.refresh), name="budget-poll"),
            asyncio.create_task(self._every(beat_s, self.beat), name="budget-beat"),
        ]

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Book what was spent and return the slices; what cannot be booked now, a reaper will."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*self._background, return_exceptions=True)
                async with self._sql:  # so that no transaction is cut
                    for task in self._tasks:
                        task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self._guarded(self._return_all)
        except TimeoutError:
            log.warning("budgets_not_booked", error=self._error)
        self._tasks = []

    async def _return_all(self) -> None:
        for part in self._slices.values():
            part.used = False
        await self.sync()
        async with self._sql:
            for counter in [c for c, p in self._slices.items() if p.settled and not p.granted]:
                await self._drop(counter)

    def state(self, caller: Caller, tags: Mapping[str, str] | None = None) -> BudgetState:
        """What policies may ask of the caller's budgets; as fresh as the last poll."""
        if not self._by_scope:
            return _NO_BUDGET
        limits = self._limits(caller, tags)
        if not limits:
            return _NO_BUDGET
        left, policy = 1.0, None
        for counter, budget in limits:
            its = _left(self._spend.get(counter, Spend()), self._slices.get(counter), budget)
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
            BudgetUnavailable: the slice is empty and the database does not answer.
        """
        if self._stamp.changed():
            await self._guarded(self.refresh)
        limits = self._limits(caller, tags) if self._by_scope else ()
        nano_usd = min(max(estimate_nano_usd, 0), store.MAX_LIMIT_NANO_USD)
        if not limits:
            return Reservation(nano_usd, ())
        return Reservation(nano_usd, await self._hold(limits, nano_usd, request_id), limits)

    async def concern(
        self, caller: Caller, tags: Mapping[str, str], backends: Sequence[str]
    ) -> bool:
        """Whether any budget stands behind such a request; without budgets it costs nothing."""
        if self._stamp.changed():
            await self._guarded(self.refresh)
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
            await self._hold(of_model.limits, more_of_model, None)
            of_model.nano_usd += more_of_model
        if reservation.limits:
            await self._hold(reservation.limits, nano_usd, None)
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
                slices = await self._hold(limits, nano_usd, request_id)
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
            part = self._slices.setdefault(counter, Slice())
            if part.free >= nano_usd:
                part.spend(nano_usd)
            else:
                short.append((counter, budget, nano_usd))
        if short:
            self._in_background(self._add(short, caller.key_id))

    async def lease(
        self, caller: Caller, tags: Mapping[str, str], changes: Mapping[str, int], *, at: float
    ) -> None:
        """See that this process has leases in all budgets that `add` will count this in.

        Then what the ledger has in its name is counted even if it dies before it counts it.
        """
        for counter, _, _ in self._concerned(caller, tags, changes, at):
            part = self._slices.setdefault(counter, Slice())
            part.used = True
            if not part.leased:
                async with self._sql:
                    await self._guarded(partial(self._sync_one, counter, part, 0))

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
                (part,) = await self._hold([(counter, budget)], nano_usd, None)
            except GatewayError:
                beyond = max(beyond, nano_usd)
                part = self._slices.setdefault(counter, Slice())
                part.overrun += nano_usd
                async with self._sql:  # there may be no lease that would tell of it if we died
                    await self._guarded(partial(self._sync_one, counter, part, 0))
            else:
                part.held -= nano_usd
                part.spend(nano_usd)
        if beyond:
            self.overruns.note(key, beyond, self.clock())

    async def _hold(
        self, limits: Sequence[tuple[Counter, Budget]], nano_usd: int, request_id: str | None
    ) -> Sequence[Slice]:
        slices = [self._slices.setdefault(counter, Slice()) for counter, _ in limits]
        if any(part.free < nano_usd for part in slices):
            try:
                slices = await self._fill(limits, nano_usd)
            except GatewayError as error:
                log.info("budget_refused", request_id=request_id, why=error.message)
                raise
        for part in slices:
            part.held += nano_usd
            part.used = True
        return slices

    def report(self) -> dict[str, Any]:
        """For /health."""
        budgets = sum(map(len, self._by_scope.values()))
        return {"ok": self._error is None, "budgets": budgets, "error": self._error}

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

    # Leasing

    async def _fill(self, limits: Sequence[tuple[Counter, Budget]], nano_usd: int) -> list[Slice]:
        """Lease until every slice has room; the slices. Raises as `reserve`."""
        for counter, budget in limits:  # spending never shrinks: no need to ask SQL again
            known = self._spend.get(counter, Spend())
            if not budget.soft and known.spent + known.overrun + nano_usd > budget.limit_nano_usd:
                raise _refusal(budget, budget.limit_nano_usd, known, nano_usd)
        failures = 0
        while failures < _TRIES:
            # A client that goes away must not cut a transaction whose end we would not know.
            work = self._in_background(self._lease(limits, nano_usd))
            try:
                await asyncio.shield(work)
            except (SQLAlchemyError, OSError) as error:
                self._note(error)
                failures += 1
                await asyncio.sleep(0.01 * 4**failures)
            slices = [self._slices.setdefault(counter, Slice()) for counter, _ in limits]
            if all(part.free >= nano_usd for part in slices):
                return slices  # else others took it between
        raise BudgetUnavailable("Budgets cannot be checked right now; try again shortly.")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, work: "asyncio.Task[None]") -> None:
        self._background.discard(work)
        if not work.cancelled():
            work.exception()  # its waiter has it, or went away

    async def _lease(self, limits: Sequence[tuple[Counter, Budget]], nano_usd: int) -> None:
        """One transaction: book what was spent, take what is missing and some more."""
        async with self._sql:
            written: list[tuple[Slice, LeaseState, LeaseState, int]] = []
            spends: dict[Counter, Spend] = {}
            async with self._engine.begin() as connection:
                for counter, budget in limits:
                    part = self._slices.setdefault(counter, Slice())
                    if part.free >= nano_usd:
                        continue  # another request's transaction brought enough
                    if not part.leased:
                        await store.ensure_counter(connection, counter)
                    asked = part.lease(self._owner)
                    spend, stands = await self._book(connection, counter, asked)
                    limit = await lease_store.limit_of(connection, budget)
                    missing = nano_usd - (stands.outstanding - asked.held)
                    more = missing + _spare(limit, spend, missing)
                    if not await lease_store.grant(
                        connection, counter, self._owner, more, limit_nano_usd=limit
                    ):
                        assert limit is not None, "only a limit refuses"
                        raise _refusal(budget, limit, spend, nano_usd)
                    written.append((part, asked, stands, more))
                    spends[counter] = spend
            for part, asked, stands, more in written:
                part.written(asked, stands, more)
            self._spend |= spends

    async def _book(
        self, connection: "AsyncConnection", counter: Counter, lease: LeaseState
    ) -> tuple[Spend, LeaseState]:
        return await lease_store.book(connection, counter, lease, ttl_us=round(self._lease_s * 1e6))

    async def sync(self) -> None:
        """Book what was spent since the last time, and return slices that nobody used."""
        await self.overruns.write()
        async with self._sql:
            for counter in sorted(self._slices, key=store.order):
                part = self._slices[counter]
                give_back = 0 if part.used else max(part.free, 0)
                part.quiet = 0 if part.used else part.quiet + 1
                part.used = False
                if give_back or not part.settled:
                    await self._sync_one(counter, part, give_back)
                elif (
                    part.quiet > _QUIET_SYNCS
                    and part.granted == part.held == 0
                    and counter not in self._spend
                ):
                    await self._drop(counter)

    async def _sync_one(self, counter: Counter, part: Slice, give_back: int) -> None:
        part.granted -= give_back  # nobody reserves it while it is on its way
        asked = part.lease(self._owner)
        try:
            async with self._engine.begin() as connection:
                if not part.leased:
                    await store.ensure_counter(connection, counter)
                spend, stands = await self._book(connection, counter, asked)
        except BaseException:
            part.granted += give_back
            raise
        part.written(asked, stands)
        if counter in self._spend:
            self._spend[counter] = spend

    async def _drop(self, counter: Counter) -> None:
        """Forget a slice of a window that is over."""
        del self._slices[counter]
        async with self._engine.begin() as connection:
            await lease_store.drop(connection, counter, self._owner)

    # Keeping fresh

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
        self._by_scope, self._spend = by_scope, spend
        self._known_limits.clear()
        self._tagged = any(scope.startswith("tag:") for scope in by_scope)
        await self._thresholds.tell(counters, spend)

    async def beat(self) -> None:
        """Extend this process's leases, and end those of dead ones.

        Not at once where the database was away: the leases of the living have run out too.
        """
        was_silent, self._silent = self._silent, True
        async with self._engine.begin() as connection:
            await lease_store.extend(connection, self._owner, ttl_us=round(self._lease_s * 1e6))
        self._silent = False
        if was_silent:
            return
        async with self._engine.begin() as connection:
            ended = await lease_store.reap(connection)
        if ended:
            log.warning("budget_leases_reaped", count=ended)
        self._beats += 1
        if self._beats % _BEATS_PER_SWEEP == 0:
            async with self._engine.begin() as connection:
                await lease_store.sweep(connection)

    async def end_leases(self, dead: str) -> int:
        """End the leases of a process that died and whose requests all stand in the ledger."""
        async with self._engine.begin() as connection:
            return await lease_store.reap(connection, dead=dead)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._guarded(work)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
            self._error = None
        except (SQLAlchemyError, OSError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        if self._error is None:
            log.error("budgets_unavailable", error=str(error)[:300])
        self._error = f"{type(error).__name__}: {str(error)[:300]}"


def _spare(limit: int | None, spend: Spend, missing: int) -> int:
    """How much more than what is missing to lease, so that the next requests need not ask."""
    if limit is None:
        return 16 * missing
    left = max(limit - spend.taken - missing, 0)
    return min(limit // _SLICES, left // _NEAR)


def _refusal(budget: Budget, limit: int, spend: Spend, nano_usd: int) -> GatewayError:
    which = f"budget {budget.scope} per {budget.window} of ${usd_text(limit)}"
    spent = spend.spent + spend.overrun
    if spent + nano_usd > limit:
        return BudgetSpent(
            f"The {which} has ${usd_text(max(limit - spent, 0))} left; "
            f"this request may cost ${usd_text(nano_usd)}."
        )
    return BudgetReserved(
        f"The {which} is taken up by requests under way; try again shortly.",
        retry_after_s=RETRY_AFTER_S,
    )


def _left(spend: Spend, own: Slice | None, budget: Budget) -> float:
    """The fraction of a budget that is not taken, 0 to 1; our unused slice is not taken."""
    taken = spend.taken - (max(own.free, 0) if own else 0)
    taken = min(max(taken, 0), budget.limit_nano_usd)
    return share(budget.limit_nano_usd - taken, budget.limit_nano_usd)
