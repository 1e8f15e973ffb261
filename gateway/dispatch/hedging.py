"""Hedging: where a short request takes longer than most did, another server is asked beside.

The first to answer (of a stream: with its first token) wins; the other call is cancelled. Both are
paid for: the loser's charge is of kind `hedge`. Second calls take from the budget of retries.

Source: Dean and Barroso 2013, "The Tail at Scale", hedged requests.
"""

import asyncio
from bisect import insort
from collections import deque

from backends.errors import BackendError, BackendStreamError, BackendTimeoutError
from gateway.api.reply import Reply
from gateway.dispatch.calls import Call, first_answer, request_of, shown
from gateway.dispatch.relay import relay
from gateway.dispatch.turns import RetryBudget, TooSlowError
from gateway.exchange import Exchange
from gateway.ledger.records import AttemptRecord, ChargeKind
from gateway.parts import Parts
from gateway.settlement import Settler
from gateway.spending import Spending
from policies.model import Hedge

SAMPLES = 256
MIN_SAMPLES = 20
"""Answers of a backend before which nobody knows what is slow for it."""


class Latencies:
    """How long each backend's last short answers took, to the answer or its first token."""

    def __init__(self) -> None:
        self._sorted: dict[tuple[str, bool], list[float]] = {}
        self._order: dict[tuple[str, bool], deque[float]] = {}

    def observe(self, backend: str, stream: bool, seconds: float) -> None:
        """One more answer."""
        order = self._order.setdefault((backend, stream), deque())
        ranked = self._sorted.setdefault((backend, stream), [])
        if len(order) >= SAMPLES:
            ranked.remove(order.popleft())
        order.append(seconds)
        insort(ranked, seconds)

    def percentile(self, backend: str, stream: bool, share: float) -> float | None:
        """Seconds that `share` of them did not exceed; None: too few are known."""
        ranked = self._sorted.get((backend, stream), [])
        if len(ranked) < MIN_SAMPLES:
            return None
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


class Hedging:
    """One per gateway process.

    Args:
        budget: of second calls.
    """

    def __init__(
        self, parts: Parts, spending: Spending, settler: Settler, budget: RetryBudget
    ) -> None:
        self.latencies = Latencies()
        self._parts = parts
        self._spending = spending
        self._settler = settler
        self._budget = budget

    async def call(
        self, x: Exchange, reply: Reply, name: str, other: str | None, hedge: Hedge
    ) -> None:
        """Call a backend, and another one beside it if it takes longer than usual.

        Args:
            other: the same backend where it has several replicas, else the next one of the chain.

        Raises:
            BackendError: no call was answered, or the answer broke off.
        """
        winner = Call(self._parts, x, name, request_of(self._parts, x, name), limit=x.limit)
        x.asked_at, x.tokens_seen = winner.began, 0
        calls, losing = [winner], list[asyncio.Task[None]]()
        try:
            if other is not None and await self._is_slow(winner, x, hedge):
                calls += self._beside(x, other)
            winner = await first_answer(calls)
            self.latencies.observe(name, x.stream, calls[0].elapsed_s)
            losing = self._losing(x, calls, winner)
            await self._take(x, reply, winner)
        except BaseException as error:
            losing = losing or self._losing(x, calls, winner)
            await self._failed(x, reply, winner, error)
            raise
        else:
            self._end(x, winner, None)
            self._settler.charge(
                x, winner.backend, x.usage, winner.elapsed_s, watched=winner.watched
            )
        finally:
            x.in_backend_s += calls[0].elapsed_s
            await asyncio.gather(*losing)
            await winner.stop()
            winner.close()

    async def _is_slow(self, call: Call, x: Exchange, hedge: Hedge) -> bool:
        """Wait as long as the call may take; whether it took longer."""
        usual_s = self.latencies.percentile(call.backend, x.stream, hedge.percentile)
        if usual_s is None:
            return False
        await asyncio.wait({call.answering}, timeout=max(usual_s, hedge.min_wait_s))
        return not call.answering.done()

    def _beside(self, x: Exchange, other: str) -> list[Call]:
        """The second call, if there is room for it at once; else none."""
        parts = self._parts
        queue = parts.queues.of(other)
        if not parts.registry.cards()[other].ready or not queue.enter_now():
            return []
        if not self._budget.spend():
            queue.leave()
            return []
        request = request_of(parts, x, other, beside=True)
        return [Call(parts, x, other, request, at_end=queue.leave)]

    async def _take(self, x: Exchange, reply: Reply, winner: Call) -> None:
        """Pass the answer on. Raises BackendError where there is none."""
        parts, name = self._parts, winner.backend
        winner.answering.result()
        x.backend, x.card = name, parts.registry.cards()[name]
        if x.stream:
            await relay(x, reply, winner.chunks(), name, self._spending.meter(x, name))
            x.first_token_at = winner.watched.first_token_at or x.first_token_at
        else:
            assert winner.completion is not None
            x.usage, x.answer = winner.completion.usage, winner.completion.body

    async def _failed(self, x: Exchange, reply: Reply, call: Call, error: BaseException) -> None:
        await call.stop()
        self._end(x, call, shown(error))
        kind: ChargeKind = "retry" if isinstance(error, BackendError) else "answer"
        await self._settler.charge_lost(x, call.backend, error, call.elapsed_s, kind, call)
        if not reply.started:
            x.backend = x.card = None

    def _losing(self, x: Exchange, calls: list[Call], winner: Call) -> list[asyncio.Task[None]]:
        """Cancel and book the other calls, while the answer goes on."""
        if len(calls) > 1:
            for call in calls[1:]:
                won = str(call is winner).lower()
                self._parts.metrics.hedges.labels(call.backend, won).inc()
        return [asyncio.create_task(self._lose(x, c, winner)) for c in calls if c is not winner]

    async def _lose(self, x: Exchange, call: Call, winner: Call) -> None:
        await call.stop()
        error = None if call.answering.cancelled() else call.answering.exception()
        self._end(x, call, shown(error) if error else f"{winner.backend} answered first")
        if error is None or isinstance(error, BackendTimeoutError | BackendStreamError):
            await self._settler.charge_beside(x, call)
        if isinstance(error, BackendError) and not isinstance(error, TooSlowError):
            self._parts.registry.mark_error(call.backend, error)
        call.close()

    @staticmethod
    def _end(x: Exchange, call: Call, error: str | None) -> None:
        ms = call.elapsed_s * 1e3
        x.attempts.append(AttemptRecord(backend=call.backend, ms=ms, error=error))
