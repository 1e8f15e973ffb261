"""The slices of budgets that this process leases from SQL, and holds money in.

SQL's transactions and memory meet here: a slice that has room answers at once, an empty one leases
more; what was spent is booked once a second, what nobody used returned sooner; leases are extended,
and those of dead processes ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import BudgetReserved, BudgetSpent, BudgetUnavailable, GatewayError
from gateway.ledger import budget_store as store
from gateway.ledger import lease_store
from gateway.ledger.budget_store import Budget, Counter, Spend
from gateway.ledger.lease_store import LeaseState
from gateway.ledger.money import usd_text
from gateway.ledger.slices import Slice
from gateway.ledger.worker_id import worker_id

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = structlog.get_logger(__name__)

LEASE_S: Final = 20.0
"""How long a silent process keeps its slices."""
BEATS_PER_LEASE: Final = 4
"""So a dead one's return after a lease and a beat, within 25 s; on its own host much sooner."""
RETRY_AFTER_S: Final = 1.0
_SLICES: Final = 64
"""A slice is at most this part of the limit…"""
_NEAR: Final = 8
"""… and at most this part of what is left."""
_TRIES: Final = 3
_PATIENCE_S: Final = 0.5
"""How long a request that only soft budgets count waits for a database that hangs."""
_BEATS_PER_SWEEP: Final = 120
_QUIET_SYNCS: Final = 600
"""How long the slice of a window that is over stays: late charges may still come to it."""


class Leases:
    """One per gateway process. All methods belong to the event loop's thread.

    Args:
        owner: names this process in its leases and its ledger rows.
    """

    def __init__(
        self, engine: "AsyncEngine", *, owner: str | None = None, lease_s: float = LEASE_S
    ) -> None:
        self._engine = engine
        self.owner = owner or worker_id()
        self._lease_s = lease_s
        self.spend: dict[Counter, Spend] = {}
        """What all processes have spent and reserved, as last read."""
        self.slices: dict[Counter, Slice] = {}
        self.refused: set[Counter] = set()
        """Those that had no room for a request, whatever the others hold."""
        self.sql = asyncio.Lock()
        """Held during each transaction that moves money."""
        self.background: set[asyncio.Task[None]] = set()
        self._beats = 0
        self._silent = False
        """Whether the last beat failed."""
        self.error: str | None = None

    def slice_of(self, counter: Counter) -> Slice:
        """This process's part of a counter, empty where it has none yet."""
        return self.slices.setdefault(counter, Slice())

    async def hold(
        self, limits: Sequence[tuple[Counter, Budget]], nano_usd: int, request_id: str | None
    ) -> Sequence[Slice]:
        """Hold money in every slice, or in none; an empty one leases more first.

        Raises:
            BudgetSpent, BudgetReserved, BudgetUnavailable: as `Budgets.reserve`.
        """
        slices = [self.slice_of(counter) for counter, _ in limits]
        if any(part.free < nano_usd for part in slices):
            try:
                slices = await self._fill(limits, nano_usd)
            except GatewayError as error:
                log.info("budget_refused", request_id=request_id, code=error.code)
                raise
        for part in slices:
            part.held += nano_usd
            part.used = True
        return slices

    async def lease_now(self, counter: Counter, part: Slice) -> None:
        """See that SQL has this slice's lease, and all that there is to know of it."""
        async with self.sql:
            await self.guarded(partial(self._sync_one, counter, part, 0))

    async def _fill(self, limits: Sequence[tuple[Counter, Budget]], nano_usd: int) -> list[Slice]:
        """Lease until every slice has room; the slices. Raises as `reserve`."""
        for counter, budget in limits:  # spending never shrinks: no need to ask SQL again
            known = self.spend.get(counter, Spend())
            if not budget.soft and known.spent + known.overrun + nano_usd > budget.limit_nano_usd:
                raise self._refusal(counter, budget, budget.limit_nano_usd, known, nano_usd)
        patience_s = _PATIENCE_S if all(budget.soft for _, budget in limits) else None
        failures = 0
        while failures < _TRIES:
            if self.error is not None and self._take_unasked(limits, nano_usd):
                return [self.slice_of(counter) for counter, _ in limits]
            # A client that goes away must not cut a transaction whose end we would not know.
            work = self.in_background(self._lease(limits, nano_usd))
            try:
                async with asyncio.timeout(patience_s):
                    await asyncio.shield(work)
            except (SQLAlchemyError, OSError) as error:
                self._note(error)
                failures += 1
                await asyncio.sleep(0.01 * 4**failures)
            slices = [self.slice_of(counter) for counter, _ in limits]
            if all(part.free >= nano_usd for part in slices):
                return slices  # else others took it between
        raise BudgetUnavailable("Budgets cannot be checked right now; try again shortly.")

    def _take_unasked(self, limits: Sequence[tuple[Counter, Budget]], nano_usd: int) -> bool:
        """With the database away, let slices of soft budgets grow: they refuse nothing.

        Returns:
            Whether every slice has room now. SQL hears of it with the next booking.
        """
        short = [(c, budget) for c, budget in limits if self.slice_of(c).free < nano_usd]
        if not all(budget.soft for _, budget in short):
            return False
        for counter, _ in short:
            part = self.slice_of(counter)
            more = nano_usd - part.free
            part.granted += more
            known = self.spend.get(counter, Spend())
            self.spend[counter] = msgspec.structs.replace(known, reserved=known.reserved + more)
        return True

    def _refusal(
        self, counter: Counter, budget: Budget, limit: int, spend: Spend, nano_usd: int
    ) -> GatewayError:
        error = _refusal(budget, limit, spend, nano_usd)
        if isinstance(error, BudgetSpent):
            self.refused.add(counter)
        return error

    def in_background(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Work that goes on when nobody waits for it any more; `return_all` does."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, work: "asyncio.Task[None]") -> None:
        self.background.discard(work)
        if not work.cancelled():
            work.exception()  # its waiter has it, or went away

    async def _lease(self, limits: Sequence[tuple[Counter, Budget]], nano_usd: int) -> None:
        """One transaction: book what was spent, take what is missing and some more."""
        async with self.sql:
            written: list[tuple[Slice, LeaseState, LeaseState, int]] = []
            spends: dict[Counter, Spend] = {}
            async with self._engine.begin() as connection:
                for counter, budget in limits:
                    part = self.slice_of(counter)
                    if part.free >= nano_usd:
                        continue  # another request's transaction brought enough
                    if not part.leased:
                        await store.ensure_counter(connection, counter)
                    asked = part.lease(self.owner)
                    spend, stands = await self._book(connection, counter, asked)
                    limit = await lease_store.limit_of(connection, budget)
                    missing = nano_usd - (stands.outstanding - asked.held)
                    more = missing + _spare(limit, spend, missing)
                    if not await lease_store.grant(
                        connection, counter, self.owner, more, limit_nano_usd=limit
                    ):
                        assert limit is not None, "only a limit refuses"
                        raise self._refusal(counter, budget, limit, spend, nano_usd)
                    written.append((part, asked, stands, more))
                    spends[counter] = spend
            for part, asked, stands, more in written:
                part.written(asked, stands, more)
            self.spend |= spends

    async def _book(
        self, connection: "AsyncConnection", counter: Counter, lease: LeaseState
    ) -> tuple[Spend, LeaseState]:
        return await lease_store.book(connection, counter, lease, ttl_us=round(self._lease_s * 1e6))

    async def sync(self, *, busy: bool = True) -> None:
        """Book what was spent since the last time, and return slices that nobody used.

        Args:
            busy: book also of slices that are in use.
        """
        async with self.sql:
            for counter in sorted(self.slices, key=store.order):
                part = self.slices[counter]
                used, part.used = part.used, False
                part.quiet = 0 if used else part.quiet + 1
                if used and not busy:
                    continue
                give_back = 0 if used else max(part.free, 0)
                if give_back or not part.settled:
                    await self._sync_one(counter, part, give_back)
                elif (
                    part.quiet > _QUIET_SYNCS
                    and part.granted == part.held == 0
                    and counter not in self.spend
                ):
                    await self._drop(counter)

    async def _sync_one(self, counter: Counter, part: Slice, give_back: int) -> None:
        part.granted -= give_back  # nobody reserves it while it is on its way
        asked = part.lease(self.owner)
        try:
            async with self._engine.begin() as connection:
                if not part.leased:
                    await store.ensure_counter(connection, counter)
                spend, stands = await self._book(connection, counter, asked)
        except BaseException:
            part.granted += give_back
            raise
        part.written(asked, stands)
        if counter in self.spend:
            self.spend[counter] = spend

    async def _drop(self, counter: Counter) -> None:
        """Forget a slice of a window that is over."""
        del self.slices[counter]
        async with self._engine.begin() as connection:
            await lease_store.drop(connection, counter, self.owner)

    async def return_all(self, tasks: "Sequence[asyncio.Task[None]]") -> None:
        """End these tasks without cutting a transaction; book what was spent, give all back."""
        while self.background:  # what they begin in their turn, too
            await asyncio.gather(*self.background, return_exceptions=True)
        async with self.sql:
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.guarded(self._return_all)

    async def _return_all(self) -> None:
        for part in self.slices.values():
            part.used = False
        await self.sync()
        async with self.sql:
            for counter in [c for c, p in self.slices.items() if p.settled and not p.granted]:
                await self._drop(counter)

    async def beat(self) -> None:
        """Extend this process's leases, and end those of dead ones.

        Not at once where the database was away: the leases of the living have run out too.
        """
        was_silent, self._silent = self._silent, True
        async with self._engine.begin() as connection:
            await lease_store.extend(connection, self.owner, ttl_us=round(self._lease_s * 1e6))
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

    async def end(self, dead: str) -> int:
        """End the leases of a process that died and whose requests all stand in the ledger."""
        async with self._engine.begin() as connection:
            return await lease_store.reap(connection, dead=dead)

    async def guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it; note and log where the database does not answer."""
        try:
            await work()
            self.error = None
        except (SQLAlchemyError, OSError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        why = str(error)[:300] or "no answer in time"
        if self.error is None:
            log.error("budgets_unavailable", error=why)
        self.error = f"{type(error).__name__}: {why}"


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
