"""Cascades: the first rung answers, a judge looks at it, and below the bar the next rung answers.

A rung's answer reaches the client when it is settled that it stands; only for clients that accept
restarts (and policies that allow them) it is streamed before, and a restart event takes it back.
The last rung is not judged, so it streams at once. A rejected answer goes along as a draft that the
next rung verifies. All calls are booked: what was lost as `rung`, what stands as `answer`.

A rung that fails is as good as rejected. Where nobody above can answer, or the deadline is near,
the best of the rejected answers stands.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import structlog
from msgspec import Struct
from msgspec.structs import replace

from backends.contract import Usage
from backends.errors import BackendError, ContextLengthError, InvalidRequestError
from backends.wire import ChatCompletionRequest
from gateway.api.reply import Reply
from gateway.dispatch.attempts import Attempts
from gateway.dispatch.drafts import Drafts
from gateway.dispatch.hidden import hide_logprobs
from gateway.dispatch.judging import Judging, text_of
from gateway.dispatch.relay import restart_event
from gateway.exchange import Exchange
from gateway.ledger.records import Verdict
from gateway.parts import Parts
from gateway.routing.judges import TOP
from gateway.settlement import Settler
from policies.cascade import BACKEND, TOKEN_JUDGES
from policies.model import Accept, BackendCard, Decision

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 5.0
"""Between comments on a stream whose answer is not settled yet."""
_IN_HAND_S = 0.05
"""Of the time to the deadline, left for giving the best answer so far."""
_BARE = Verdict(judge="", accepted=True, why="the last rung is not judged")


class _Answer(Struct):
    """What one rung said."""

    backend: str
    body: dict[str, Any]
    usage: Usage | None
    held: dict[str, Any] | None
    verdict: Verdict
    charge: int
    """Its place among the request's."""


class Cascades:
    """Climbs; one per gateway process."""

    def __init__(self, parts: Parts, attempts: Attempts, settler: Settler) -> None:
        self._parts = parts
        self._attempts = attempts
        self._judging = Judging(parts, settler, parts.router.judges)
        self._drafts = Drafts()

    async def climb(self, x: Exchange, reply: Reply) -> str:
        """Leave the answer that stands in `x`; the name of the backend that wrote it.

        Raises:
            BackendError: nobody answered.
        """
        assert x.decision is not None
        assert x.decision.accept is not None
        accept, affordable = x.decision.accept, x.affordable
        ladder = [name for name in x.decision.rungs if name in affordable]
        spare = [name for name in affordable if name not in x.decision.rungs]
        best: _Answer | None = None
        async with _kept_alive(x, reply):
            for place in range(len(ladder) - 1):
                if _too_late(x, best, ladder[place]):
                    continue
                found = await self._rung(x, reply, ladder[place:], accept, best)
                if found is None:
                    continue
                if found.verdict.accepted:
                    return self._stand(x, found, shown=not x.buffered)
                await self._take_back(x, reply, found)
                best = _better(best, found)
        x.affordable = (*ladder[-1:], *spare)
        return await self._last(x, reply, accept, best)

    async def _rung(
        self,
        x: Exchange,
        reply: Reply,
        ladder: Sequence[str],
        accept: Accept,
        best: _Answer | None,
    ) -> _Answer | None:
        """The first rung's answer, judged; None if it has none."""
        name, *above = ladder
        x.affordable = (name,)
        x.buffered = not (accept.restart and x.options.accept_restart)
        x.extra = {name: {**_for_judge(x, accept), **self._draft(x, name, accept, best)}}
        x.hides_logprobs = "logprobs" in x.extra[name]
        first = len(x.charges)
        try:
            async with _before_deadline(x, best):
                await self._attempts.ask(x, reply, above)
                self._book_as_rung(x, first)
                self._learn(x, name, best)
                verdict = await self._judging.judge(x, name, accept, above)
        except (BackendError, TimeoutError) as error:
            self._book_as_rung(x, first)
            if not _elsewhere(error, x.extra[name]):
                raise
            self._count(x, "failed")
            await self._take_back(x, reply, None, str(error))
            return None
        self._count(x, "accepted" if verdict.accepted else "rejected")
        x.attempts[-1] = replace(x.attempts[-1], verdict=verdict)
        log.info(
            "rung_judged",
            request_id=x.request_id,
            backend=name,
            judge=verdict.judge,
            p_good=verdict.p_good,
            accepted=verdict.accepted,
        )
        place = max(i for i in range(first, len(x.charges)) if x.charges[i].kind == "rung")
        return _Answer(name, x.answer or {}, x.usage, x.held, verdict, place)

    async def _last(self, x: Exchange, reply: Reply, accept: Accept, best: _Answer | None) -> str:
        """The rung that is not judged, or who stands in for it, or the best answer so far."""
        name = x.affordable[0]
        if best is not None and _too_late(x, best, name):
            return self._stand(x, best, shown=False)
        x.buffered, x.hides_logprobs = False, False
        x.extra = {name: self._draft(x, name, accept, best)}
        first, x.tokens_seen, x.held = len(x.charges), 0, None
        try:
            async with _before_deadline(x, best):
                answered = await self._attempts.ask(x, reply)
        except (BackendError, TimeoutError) as error:
            if best is None or not _elsewhere(error, x.extra[name]):
                raise
            if x.tokens_seen and not x.options.accept_restart:
                raise
            self._book_as_rung(x, first)
            self._count(x, "failed")
            await self._take_back(x, reply, None, str(error))
            return self._stand(x, best, shown=False)
        self._learn(x, answered, best)
        self._count(x, "last")
        x.attempts[-1] = replace(x.attempts[-1], verdict=_BARE)
        x.settled = True
        self._tell_usage(x)
        return answered

    def _count(self, x: Exchange, verdict: str) -> None:
        assert x.routed is not None
        self._parts.metrics.count_rung(x.routed.loaded_policy.name, verdict)

    def _stand(self, x: Exchange, answer: _Answer, *, shown: bool) -> str:
        """This answer it is; `shown`: the client has seen it as it came."""
        assert x.asked is not None
        x.backend = answer.backend
        x.card = self._parts.registry.cards()[answer.backend]
        x.answer, x.usage, x.held = answer.body, answer.usage, answer.held if shown else None
        x.unseen = x.stream and not shown
        x.settled = answer.verdict.accepted
        x.charges[answer.charge] = replace(x.charges[answer.charge], kind="answer")
        if x.unseen and x.first_token_at is None:
            x.first_token_at = time.perf_counter()
        hide_logprobs(x.answer, x.asked.raw)
        self._tell_usage(x)
        return answer.backend

    async def _take_back(
        self, x: Exchange, reply: Reply, answer: _Answer | None, why: str = ""
    ) -> None:
        """Tell a client that has seen a part of an answer to forget it."""
        if answer is not None:
            verdict = answer.verdict
            shown = "unknown" if verdict.p_good is None else f"{verdict.p_good:.3f}"
            why = f"{answer.backend} rejected by {verdict.judge}: P(good) {shown}"
        if reply.started and x.tokens_seen and not x.buffered:
            await reply.event(restart_event(x, why))
        x.tokens_seen, x.held = 0, None

    def _draft(
        self, x: Exchange, name: str, accept: Accept, best: _Answer | None
    ) -> dict[str, Any]:
        """The rejected answer, where the next rung can make use of it and that pays."""
        x.drafted = False
        if best is None or not accept.predict or not isinstance(x.request, ChatCompletionRequest):
            return {}
        settings = self._parts.backend_settings[name]
        verifies = settings.kind in ("engine", "echo") or "prediction" in settings.accepts
        text = text_of((best.body.get("choices") or [{}])[0])
        asked = x.request.prediction is not None or (x.request.n or 1) > 1
        if asked or not verifies or not text or not self._drafts.pays(best.backend, name):
            return {}
        x.drafted = True
        return {"prediction": {"type": "content", "content": text}}

    def _learn(self, x: Exchange, name: str, best: _Answer | None) -> None:
        """What became of our own draft; it is none of the client's business."""
        if not x.drafted or best is None:
            return
        self._drafts.learn(best.backend, name, x.usage)
        details = ((x.answer or {}).get("usage") or {}).get("completion_tokens_details")
        if isinstance(details, dict):
            details |= {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}

    def _tell_usage(self, x: Exchange) -> None:
        """Beside what our engine measured: how many rungs answered, and what the lost ones took."""
        told = ((x.answer or {}).get("usage") or {}).get("headgate")
        if isinstance(told, dict):
            lost = [charge for charge in x.charges if charge.kind in ("rung", "judge")]
            told["rungs"] = sum(attempt.verdict is not None for attempt in x.attempts)
            told["rungs_lost_ns"] = sum(charge.machine_ns for charge in lost)

    def _book_as_rung(self, x: Exchange, first: int) -> None:
        """Charges from the `first` on are a lost rung's, until it is settled that it stands."""
        for place in range(first, len(x.charges)):
            if x.charges[place].kind in ("answer", "retry"):
                x.charges[place] = replace(x.charges[place], kind="rung")


def cached_as(decision: Decision, cards: Mapping[str, BackendCard]) -> tuple[str, str]:
    """(backend, revision) under which the answer of a decision is cached.

    What a cascade settled is good for the same cascade only: another bar, judge or rung may have
    decided otherwise.
    """
    if not decision.rungs or decision.accept is None:
        first = decision.candidates[0]
        return first, cards[first].revision
    accept = decision.accept
    ladder = (
        f"{'>'.join(decision.rungs)} {accept.judge}/{accept.n}>={accept.min:g},{accept.min_gain:g}"
        f"{f',{accept.lambda_cost_usd:g}' if accept.lambda_cost_usd else ''}"
    )
    return ladder, "+".join(cards[name].revision for name in decision.rungs)


def _for_judge(x: Exchange, accept: Accept) -> dict[str, Any]:
    """The log-probabilities that a judge reads, also where another judge may need them."""
    if accept.judge not in TOKEN_JUDGES and not (
        accept.judge.startswith(BACKEND) or accept.judge == "consistency"
    ):
        return {}
    if isinstance(x.request, ChatCompletionRequest):
        return {"logprobs": True, "top_logprobs": max(TOP, x.request.top_logprobs or 0)}
    return {"logprobs": max(TOP, getattr(x.request, "logprobs", None) or 0)}


def _elsewhere(error: Exception, extra: Mapping[str, Any]) -> bool:
    """Whether another rung may answer what this one did not."""
    if isinstance(error, InvalidRequestError) and not isinstance(error, ContextLengthError):
        named = f"{error.param or ''} {error.message}"
        return any(field in named for field in extra)  # it is ours, not the client's
    return True


def _better(best: _Answer | None, found: _Answer) -> _Answer:
    """The likelier one; of equals the later, a dearer backend's."""
    if best is None or (found.verdict.p_good or 0.0) >= (best.verdict.p_good or 0.0):
        return found
    return best


def _too_late(x: Exchange, best: _Answer | None, name: str) -> bool:
    """Whether there is an answer to give, and less time than half of what `name` usually takes."""
    if best is None or x.ends_at is None:
        return False
    usual_ms = next((c.latency_ms for c in x.candidates if c.backend == name), None) or 0.0
    return _spare_s(x.ends_at) <= usual_ms / 2e3


def _spare_s(ends_at: float) -> float:
    return ends_at - time.perf_counter() - _IN_HAND_S


def _before_deadline(
    x: Exchange, best: _Answer | None
) -> contextlib.AbstractAsyncContextManager[Any]:
    """Once there is an answer to give, TimeoutError comes before the request's deadline does."""
    if best is None or x.ends_at is None:
        return contextlib.nullcontext()
    return asyncio.timeout(max(_spare_s(x.ends_at), 0.0))


@contextlib.asynccontextmanager
async def _kept_alive(x: Exchange, reply: Reply) -> AsyncIterator[None]:
    """While inside, a stream that has nothing to say yet carries comments."""
    if not x.stream:
        yield
        return
    over = asyncio.Event()
    task = asyncio.create_task(_beat(x, reply, over))
    try:
        yield
    finally:
        over.set()
        await task


async def _beat(x: Exchange, reply: Reply, over: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KEEP_ALIVE_S):
                await over.wait()
                return
        if not reply.started:
            await reply.start_stream(x.headers(settled=False))
        await reply.event(b": the answer is not settled yet\n\n")
