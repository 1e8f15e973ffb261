"""Asking backends for one answer: in the policy's order, again, or two at once.

Every call is booked, whether it works or not, and stands in the request's attempts; the client sees
one answer, or one error. `gateway/dispatch/turns.py` says who is next.
"""

import asyncio
import random
import time
from collections.abc import Sequence

import structlog

from backends.errors import BackendError, InvalidRequestError
from gateway.accruing import held_as_it_goes
from gateway.api.reply import Reply
from gateway.dispatch.calls import request_of, shown
from gateway.dispatch.deadlines import limit_of
from gateway.dispatch.hedging import Hedging
from gateway.dispatch.relay import relay, restart_event
from gateway.dispatch.turns import HELPS_ELSEWHERE, ClosedError, RetryBudget, TooSlowError, Turns
from gateway.exchange import Exchange
from gateway.ledger.records import AttemptRecord, ChargeKind
from gateway.limits.fair_queue import QueueError
from gateway.parts import Parts
from gateway.settlement import Settler
from gateway.spending import Spending, hedge_of

log = structlog.get_logger(__name__)


class Attempts:
    """One per gateway process."""

    def __init__(self, parts: Parts, spending: Spending, settler: Settler) -> None:
        self._parts = parts
        self._spending = spending
        self._settler = settler
        self._budget = RetryBudget(parts.settings.failure.retry_budget)
        self._draw = random.Random().random
        self.hedging = Hedging(parts, spending, settler, self._budget)

    async def ask(self, x: Exchange, reply: Reply, above: Sequence[str] = ()) -> str:
        """Call `x.affordable` until one answers; the name of the one that did.

        Args:
            above: who else may be asked when none of them has; a deadline leaves them time.

        Raises:
            BackendError: what the last call failed of; nobody is left, or the client has seen some.
        """
        turns = self._turns(x)
        self._budget.earn()
        while True:
            name, charges, x.usage = turns.backend, len(x.charges), None
            try:
                await self._turn(x, reply, turns, above)
            except BackendError as error:
                self._note_failure(x, name, error)
                pause_s = turns.after(error, started=reply.started)
                if pause_s is None:
                    self._settler.last_call(x, charges)
                    raise
                await self._before_next(x, reply, turns.backend, pause_s, error)
            else:
                assert x.backend is not None
                self._parts.registry.mark_success(x.backend)
                return x.backend

    def _turns(self, x: Exchange) -> Turns:
        parts, decision = self._parts, x.decision
        assert decision is not None
        cards = parts.registry.cards()
        return Turns(
            x.affordable,
            settings=parts.settings.failure,
            budget=self._budget,
            draw=self._draw,
            context_of=lambda name: cards[name].context_tokens,
            replicas_of=self._replicas,
            retries=0 if x.buffered and decision.retries is None else decision.retries,
            restart=decision.restart and x.stream and x.options.accept_restart,
        )

    def _replicas(self, name: str) -> int:
        return max(len(getattr(self._parts.backends[name], "breakers", ())), 1)

    async def _before_next(
        self, x: Exchange, reply: Reply, name: str, pause_s: float, error: BackendError
    ) -> None:
        self._parts.metrics.retries.labels(name).inc()
        if reply.started:
            await reply.event(restart_event(x, error.message))
        if pause_s:
            await asyncio.sleep(pause_s)

    async def _turn(self, x: Exchange, reply: Reply, turns: Turns, above: Sequence[str]) -> None:
        """One backend's turn: past its breaker, through its queue, to its answer."""
        registry, name = self._parts.registry, turns.backend
        if not registry.admits(name):
            why, left_s = registry.closed_to(name)
            error = ClosedError(
                f"backend {name!r} was not asked: {why}", backend=name, retry_after_s=left_s
            )
            x.attempts.append(AttemptRecord(backend=name, ms=0.0, error=shown(error)))
            raise error
        assert x.caller is not None
        x.limit = limit_of(self._parts, x, name, (*turns.after_it, *above)) if x.ends_at else None
        queue = self._parts.queues.of(name)
        try:
            if x.in_batch:
                await queue.enter_behind()
            else:
                within_s = None if x.limit is None else x.limit.left_s
                await queue.enter(x.caller.team, x.caller.weight, within_s)
            try:
                hedge = hedge_of(x)
                if hedge is None:
                    await self._call(x, reply, name)
                else:
                    other = name if self._replicas(name) > 1 else turns.following
                    await self.hedging.call(x, reply, name, other, hedge)
            finally:
                queue.leave()
        except asyncio.CancelledError:
            registry.release(name)
            raise

    def _note_failure(self, x: Exchange, name: str, error: BackendError) -> None:
        parts = self._parts
        hurried = isinstance(error, TooSlowError) and x.limit is not None and not x.limit.ample
        if hurried or isinstance(error, ClosedError | QueueError | InvalidRequestError):
            parts.registry.release(name)
        elif isinstance(error, HELPS_ELSEWHERE):
            parts.registry.mark_error(name, error)
        parts.metrics.count_failed_attempt(name, type(error).__name__)
        log.warning("attempt_failed", request_id=x.request_id, backend=name, error=error.message)

    async def _call(self, x: Exchange, reply: Reply, name: str) -> None:
        """One call of one backend, booked whether it works or not."""
        parts = self._parts
        assert x.facts is not None
        request = request_of(parts, x, name)
        backend = parts.backends[name]
        x.backend, x.card = name, parts.registry.cards()[name]
        x.tokens_seen = 0
        began = x.asked_at = time.perf_counter()
        failure: str | None = None
        prompt_tokens = x.facts.features.prompt_tokens
        flight = parts.foreign.flight(x, name, prompt_tokens, request.body)
        with parts.registry.running(name), flight:
            try:
                async with held_as_it_goes(parts, x, name):
                    if x.streams:
                        meter = self._spending.meter(x, name)
                        chunks = backend.stream(request)
                        chunks = chunks if x.limit is None else x.limit.first(chunks)
                        timed = parts.foreign.timed(x, name, chunks)
                        await relay(x, reply, timed, name, meter)
                    else:
                        answering = backend.generate(request)
                        completion = await (x.limit.whole(answering) if x.limit else answering)
                        x.usage, x.answer = completion.usage, completion.body
                if x.stopped is not None:
                    await self._settler.learn_usage(x, name)
            except BaseException as error:
                failure = shown(error)
                elapsed_s = time.perf_counter() - began
                kind: ChargeKind = "retry" if isinstance(error, BackendError) else "answer"
                await self._settler.charge_lost(x, name, error, elapsed_s, kind)
                if not reply.started:
                    x.backend = x.card = None  # it did not answer
                raise
            finally:
                elapsed_s = time.perf_counter() - began
                x.in_backend_s += elapsed_s
                x.attempts.append(AttemptRecord(backend=name, ms=elapsed_s * 1e3, error=failure))
            self._settler.charge(x, name, x.usage, elapsed_s)
