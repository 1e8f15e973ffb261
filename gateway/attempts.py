"""Asking backends for one answer: in the policy's order, again, or two at once.

Every call is booked, whether it works or not, and stands in the request's attempts; the client sees
one answer, or one error. `gateway/turns.py` says who is next.
"""

import asyncio
import random
import time

import structlog

from backends.contract import GenerateRequest
from backends.errors import BackendError, InvalidRequestError
from gateway.api.reply import Reply
from gateway.api.translate import backend_body
from gateway.exchange import Exchange
from gateway.ledger.records import AttemptRecord, ChargeKind
from gateway.limits.fair_queue import QueueError
from gateway.parts import Parts
from gateway.relay import relay
from gateway.settlement import Settler
from gateway.spending import Spending, tightest
from gateway.turns import HELPS_ELSEWHERE, ClosedError, RetryBudget, Turns

log = structlog.get_logger(__name__)


class Attempts:
    """One per gateway process."""

    def __init__(self, parts: Parts, spending: Spending, settler: Settler) -> None:
        self._parts = parts
        self._spending = spending
        self._settler = settler
        self._budget = RetryBudget(parts.settings.failure.retry_budget)
        self._draw = random.Random().random

    async def ask(self, x: Exchange, reply: Reply) -> str:
        """Call `x.affordable` until one answers; the name of the one that did.

        Raises:
            BackendError: what the last call failed of; nobody is left, or the client has seen some.
        """
        turns = self._turns(x)
        self._budget.earn()
        while True:
            name, charges, x.usage = turns.backend, len(x.charges), None
            try:
                await self._turn(x, reply, name)
            except BackendError as error:
                self._note_failure(x, name, error)
                pause_s = turns.after(error, started=reply.started)
                if pause_s is None:
                    self._settler.last_call(x, charges)
                    raise
                await asyncio.sleep(pause_s)
            else:
                self._parts.registry.mark_success(name)
                return name

    def _turns(self, x: Exchange) -> Turns:
        cards = self._parts.registry.cards()
        return Turns(
            x.affordable,
            settings=self._parts.settings.failure,
            budget=self._budget,
            draw=self._draw,
            context_of=lambda name: cards[name].context_tokens,
        )

    async def _turn(self, x: Exchange, reply: Reply, name: str) -> None:
        """One backend's turn: past its breaker, through its queue, to its answer."""
        registry = self._parts.registry
        if not registry.admits(name):
            why, left_s = registry.closed_to(name)
            error = ClosedError(
                f"backend {name!r} was not asked: {why}", backend=name, retry_after_s=left_s
            )
            x.attempts.append(AttemptRecord(backend=name, ms=0.0, error=_shown(error)))
            raise error
        assert x.caller is not None
        queue = self._parts.queues.of(name)
        try:
            await queue.enter(x.caller.team, x.caller.weight)
            try:
                await self._call(x, reply, name)
            finally:
                queue.leave()
        except asyncio.CancelledError:
            registry.release(name)
            raise

    def _note_failure(self, x: Exchange, name: str, error: BackendError) -> None:
        parts = self._parts
        if isinstance(error, ClosedError | QueueError | InvalidRequestError):
            parts.registry.release(name)
        elif isinstance(error, HELPS_ELSEWHERE):
            retry_after_s = getattr(error, "retry_after_s", 0.0)
            parts.registry.mark_failure(name, error.message, retry_after_s)
        parts.metrics.count_failed_attempt(name, type(error).__name__)
        log.warning("attempt_failed", request_id=x.request_id, backend=name, error=error.message)

    async def _call(self, x: Exchange, reply: Reply, name: str) -> None:
        """One call of one backend, booked whether it works or not."""
        parts = self._parts
        assert x.facts is not None
        request = self._request(x, name)
        backend = parts.backends[name]
        x.backend, x.card = name, parts.registry.cards()[name]
        x.usage, x.tokens_seen = None, 0
        began = x.asked_at = time.perf_counter()
        failure: str | None = None
        prompt_tokens = x.facts.features.prompt_tokens
        with parts.registry.running(name), parts.foreign.flight(x, name, prompt_tokens):
            try:
                if x.stream:
                    meter = self._spending.meter(x, name)
                    await relay(x, reply, backend.stream(request), name, meter)
                    if x.stopped is not None:
                        await self._settler.learn_usage(x, name)
                else:
                    completion = await backend.generate(request)
                    x.usage, x.answer = completion.usage, completion.body
            except BaseException as error:
                failure = _shown(error)
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

    def _request(self, x: Exchange, name: str) -> GenerateRequest:
        settings = self._parts.backend_settings[name]
        assert x.asked is not None
        assert x.decision is not None
        assert x.facts is not None
        return GenerateRequest(
            request_id=x.request_id,
            endpoint=x.endpoint,
            body=backend_body(
                x.asked.raw,
                model=settings.model if settings.kind == "openai" else name,
                needs=x.facts.needs,
                max_tokens=tightest(x.decision.max_tokens, x.token_cap),
                stream=x.stream,
            ),
            headers={"traceparent": x.options.traceparent} if x.options.traceparent else {},
            timeout_s=settings.timeout_s,
        )


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
