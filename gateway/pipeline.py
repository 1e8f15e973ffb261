"""The whole story of one request, top to bottom.

`Pipeline.run` is the story; the steps below it call the rooms that do the work. However a request
ends (answered, refused, failed, cancelled), it is settled exactly once, before its last byte.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from backends.contract import Endpoint
from backends.wire import ChatCompletionRequest, EmbeddingRequest, sampling_params, usage_to_wire
from gateway.api import sse
from gateway.api.auth import Client, Gate, require, require_endpoint
from gateway.api.reply import ClientGone, Reply
from gateway.api.schemas import WireRequest, all_tags, check_request, read_options
from gateway.api.translate import decode_body, gateway_error
from gateway.cache.caches import CacheQuery
from gateway.cache.model import CachedAnswer
from gateway.dispatch.attempts import Attempts
from gateway.dispatch.cascade import Cascades, cached_as
from gateway.dispatch.relay import last_events
from gateway.dispatch.shadow import Shadows
from gateway.errors import (
    GatewayError,
    LedgerUnavailable,
    MaxCostExceeded,
    PolicyDenied,
    Unavailable,
)
from gateway.exchange import Exchange
from gateway.late_charges import LateCharges
from gateway.ledger.access import EVERYTHING
from gateway.ledger.keys import Caller
from gateway.ledger.money import usd_text
from gateway.ledger.records import CandidateRecord
from gateway.parts import Parts
from gateway.repeats import Asked, Repeats
from gateway.routing.recorded import candidate_record
from gateway.routing.router import sticky_draw, strictest
from gateway.settlement import Settler
from gateway.spending import Spending, answer_tokens
from policies.model import CacheRule, Facts, Warm

log = structlog.get_logger(__name__)

_HEADER_RULES: Mapping[str | None, CacheRule] = {"off": "off", "exact": "exact"}
"""Values of x-headgate-cache that tighten."""
_encode = msgspec.json.Encoder().encode
_NO_DEADLINE = contextlib.nullcontext()


class Pipeline:
    """Answers chats, completions and embeddings."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.gate = Gate(parts.settings, parts.keys)
        self.draining = False
        self.in_flight = 0
        self._ids: set[str] = set()
        self._repeats = Repeats()
        self._capabilities = parts.settings.capabilities()
        self._spending = Spending(parts)
        self._settler = Settler(parts, self._spending)
        self.attempts = Attempts(parts, self._spending, self._settler)
        self.cascades = Cascades(parts, self.attempts, self._settler)
        self.shadows = Shadows(parts)
        self.late_charges = LateCharges(parts)

    async def run(
        self,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        reply: Reply,
        client: Client | None = None,
        *,
        path: str | None = None,
        caller: Caller | None = None,
        in_batch: bool = False,
    ) -> None:
        """One request, from its headers to its last byte.

        Args:
            path: under which the client asked, if not as the endpoint's own: /v1/`path`.
            caller: who asks, where that is known already.
            in_batch: it is a line of a batch.
        """
        parts = self.parts
        x = Exchange(endpoint, parts.new_id(), began=time.perf_counter(), now=parts.clock())
        x.in_batch = in_batch
        self.in_flight += 1
        parts.metrics.in_flight.inc()
        try:
            await self._receive(x, headers, reply, client, path, caller)
            async with _deadline(x):
                await self._route(x)
                if x.caller is not None and x.caller.limited:
                    self._begin_admission(x)
                await self._look_up(x)
                await self._admit(x)
                if x.hit is None:
                    with reply.watching():
                        self._keep(x, await self._ask(x, reply))
        except ClientGone:
            return  # it left before it had asked for anything
        except (Exception, asyncio.CancelledError) as error:
            self._fail(x, reply, error)
        finally:
            self.in_flight -= 1
            parts.metrics.in_flight.dec()
            self._ids.discard(x.request_id)
        if x.caller is None:  # nobody to settle with: it was refused at the door
            await self._finish(x, reply)
            return
        alone = not self.in_flight
        settlement = self._settler.settle(x, alone=alone)
        await parts.ledger.journalled(alone=alone)
        await self._finish(x, reply)
        if x.asked_as or x.outcome in ("cancelled", "error"):
            self.late_charges.follow(settlement, x.asked_as)
        if x.encoding is not None:
            self.late_charges.follow_encoding(x.encoding, settlement)
        self.shadows.follow(x, settlement)

    async def _receive(
        self,
        x: Exchange,
        headers: Mapping[str, str],
        reply: Reply,
        client: Client | None,
        path: str | None,
        caller: Caller | None,
    ) -> None:
        """Who asks, and for what."""
        if self.draining:
            raise Unavailable("The gateway is shutting down; try again.", retry_after_s=2)
        if (why := self.parts.ledger.refusal) is not None:
            raise LedgerUnavailable(why, retry_after_s=5)
        server = self.parts.settings.server
        caller = caller or await self.gate.caller(headers, client)
        require(caller, "inference")
        if caller.only is not EVERYTHING:
            require_endpoint(caller, path or x.endpoint)
        x.caller = caller
        x.options = read_options(headers)
        await self._name(x)
        body = await reply.read(server.max_body_bytes, headers.get("content-encoding"))
        asked = x.asked = self._decode(x.endpoint, body)
        x.request = asked.request
        if isinstance(x.request, EmbeddingRequest):
            x.tags = x.options.tags
        else:
            x.tags = all_tags(x.options, x.request.metadata)

    def _decode(self, endpoint: Endpoint, body: bytes) -> Asked:
        """The body decoded and checked; a repeat costs a look-up. Raises WireError."""
        known = self._repeats.get(endpoint, body)
        if known is not None:
            return known
        drop = self.parts.settings.server.unknown_fields == "drop"
        decoded = decode_body(endpoint, body, drop_unknown=drop, capabilities=self._capabilities)
        asked = Asked(*decoded)
        check_request(asked.request)
        if not isinstance(asked.request, EmbeddingRequest):
            sampling_params(asked.request)
        self._repeats.put(endpoint, body, asked)
        return asked

    async def _name(self, x: Exchange) -> None:
        """Take over the client's request id, unless a row or a request of that id is there."""
        wanted = x.options.request_id
        if wanted is not None:
            if wanted in self._ids or await self.parts.ledger.knows(wanted):
                wanted = f"{wanted[:100]}-{x.request_id}"  # a second row would never be written
            x.request_id = wanted
        self._ids.add(x.request_id)
        structlog.contextvars.bind_contextvars(request_id=x.request_id)

    async def _route(self, x: Exchange) -> None:
        """Features, then the policy; a refusal ends here, also for what a cache could answer."""
        assert x.request is not None
        assert x.caller is not None
        assert x.asked is not None
        parts, caller = self.parts, x.caller
        if x.request.user is not None and not caller.owned:
            caller = x.caller = replace(caller, user=x.request.user)
        facts = x.facts = self._facts(x.asked, caller, x.tags)
        x.routed = await parts.router.decide(
            facts,
            policy_name=x.options.policy,
            budget=parts.budgets.state(caller, x.tags),
            only=caller.only,
            now=datetime.fromtimestamp(x.started_at, UTC),
            draw=_draw(x.asked, caller.team),
            luck=sticky_draw(x.request_id) if parts.settings.routing.explore else None,
            asked=x.asked,
        )
        facts = x.facts = x.routed.facts
        decision = x.routed.decision
        estimates, forecasts = facts.estimates, parts.router.forecasts
        x.candidates = tuple(
            candidate_record(name, facts, estimates[name])
            if name in estimates
            else CandidateRecord(
                backend=name,
                cost_nano_usd=forecasts.cost_nano_usd(facts, name, decision.max_tokens),
                quality=facts.features.quality.get(name),
            )
            for name in decision.candidates
        )
        if x.routed.refusal is not None:
            raise x.routed.refusal

    def _facts(self, asked: Asked, caller: Caller, tags: dict[str, str]) -> Facts:
        inputs = (caller.team, caller.key_id, caller.user, tags)
        found: Facts | None = asked.recall("facts", inputs)
        if found is not None:
            return found
        facts = self.parts.router.facts(
            asked.request,
            team=caller.team,
            key=caller.key_id,
            user=caller.user,
            tags=tags,
            needs=asked.needs,
        )
        return asked.remember("facts", inputs, facts)

    async def _look_up(self, x: Exchange) -> None:
        """The caches, as far as operator, policy and caller allow together."""
        caches, decision = self.parts.caches, x.decision
        assert decision is not None
        assert x.caller is not None
        rule = strictest(decision.cache, _HEADER_RULES.get(x.options.cache))
        if caches is None or rule == "off" or isinstance(x.request, EmbeddingRequest):
            return
        assert x.request is not None
        assert x.asked is not None
        if x.asked.needs:  # fields that we do not know may mean anything
            return
        cards = self.parts.registry.cards()
        backend, revision = cached_as(decision, cards)
        x.lookup = await caches.lookup(
            CacheQuery(
                namespace=x.caller.team,
                request=x.request,
                backend=backend,
                revision=revision,
                max_tokens=decision.max_tokens,
                rule=rule,
                refresh=x.options.cache == "refresh",
            ),
            x.asked,
            x.encoding,
        )
        x.cache = x.lookup.verdict
        if x.lookup.hit is not None:
            made_by = x.lookup.hit.answer.backend if decision.rungs else backend
            x.card = cards.get(made_by)
            self._settler.reuse(x, x.lookup.hit)
            x.answer = {**x.lookup.hit.answer.body, "id": x.answer_id, "model": made_by}

    def _begin_admission(self, x: Exchange) -> None:
        """Ask for a place under the rate limits, in one write with the look at the cache."""
        assert x.caller is not None
        assert x.facts is not None
        x.admission = self.parts.limiter.ask(
            x.caller,
            tokens=x.facts.features.prompt_tokens + answer_tokens(x),
            nano_usd=max(self._spending.estimates(x).values()),
            at_once=self.in_flight == 1,
        )

    async def _admit(self, x: Exchange) -> None:
        """Hold what the answer may cost while the rate limits are asked. Where both refuse, the
        client hears of the limit."""
        if x.hit is None:
            try:
                await self._reserve(x)
            except GatewayError:
                await self._wait_for_place(x)
                raise
        await self._wait_for_place(x)

    async def _wait_for_place(self, x: Exchange) -> None:
        """Under the rate limits; over one not even a cache answers."""
        if x.admission is None:
            return
        try:
            await x.admission.wait()
        except GatewayError:
            x.forget_hit()
            raise

    def _expect_latency(self, x: Exchange) -> None:
        """What a policy without estimates left open, for the record; a cache hit needs none."""
        assert x.facts is not None
        cards, forecasts = self.parts.registry.cards(), self.parts.router.forecasts
        most = answer_tokens(x)
        x.candidates = tuple(
            replace(candidate, latency_ms=forecasts.latency_ms(x.facts, card, most))
            if candidate.latency_ms is None and (card := cards.get(candidate.backend)) is not None
            else candidate
            for candidate in x.candidates
        )

    async def _reserve(self, x: Exchange) -> None:
        """Hold what the dearest candidate may cost; over the request's own cap none is asked."""
        assert x.decision is not None
        self._expect_latency(x)
        x.affordable = x.decision.candidates
        cap = x.options.max_cost_nano_usd
        if cap is not None:
            estimates = self._spending.estimates(x)
            cheapest = min(estimates.values())
            if cheapest > cap:
                raise MaxCostExceeded(
                    f"The answer may cost ${usd_text(cheapest)}, more than the allowed "
                    f"${usd_text(cap)}; a smaller max_tokens lowers it.",
                    param="x-headgate-max-cost-usd",
                )
            x.affordable = tuple(name for name, cost in estimates.items() if cost <= cap)
        await self._spending.reserve(x)

    async def _ask(self, x: Exchange, reply: Reply) -> str:
        """The backend that answered."""
        assert x.decision is not None
        if x.decision.rungs:
            return await self.cascades.climb(x, reply)
        return await self.attempts.ask(x, reply)

    def _keep(self, x: Exchange, name: str) -> None:
        """Name the answer, and give it to the caches if it may be reused."""
        answer = x.answer
        assert answer is not None
        answer["model"] = name
        if not isinstance(x.request, EmbeddingRequest):
            answer["id"] = x.answer_id
        if x.usage is not None and "usage" not in answer:
            answer["usage"] = usage_to_wire(x.usage)
        reasons = {choice.get("finish_reason") for choice in answer.get("choices", ())}
        if x.token_cap is not None and "length" in reasons:
            x.stopped = "budget"
        self._note_turn(x, name)
        caches, decision = self.parts.caches, x.decision
        assert decision is not None
        chosen = x.settled if decision.rungs else name == decision.candidates[0]
        if caches is None or x.cache != "miss" or not chosen:
            return
        if not reasons <= {"stop", "length", "tool_calls"} or not reasons:
            return
        if x.stopped or ("length" in reasons and _was_capped(x)):
            return
        caches.store(
            x.lookup,
            CachedAnswer(
                request_id=x.request_id,
                backend=name,
                model=name,
                body=answer,
                cost_nano_usd=x.cost_nano_usd,
                created_at=self.parts.clock(),
            ),
        )

    def _note_turn(self, x: Exchange, name: str) -> None:
        """For the conversation's next turn, if the policy asks where its prefix is warm."""
        assert x.routed is not None
        if x.usage is None or not x.routed.loaded_policy.compiled.uses_warmth:
            return
        assert x.request is not None
        assert x.caller is not None
        tokens = x.usage.prompt_tokens + x.usage.completion_tokens
        self.parts.conversations.note(x.request, x.caller.team, Warm(backend=name, tokens=tokens))

    def _fail(self, x: Exchange, reply: Reply, error: BaseException) -> None:
        """Note how the request ended."""
        if isinstance(error, asyncio.CancelledError):
            x.outcome, x.status = "cancelled", 200 if reply.started else 499
            task = asyncio.current_task()
            if task is not None and reply.disconnected:
                task.uncancel()
            return
        x.error = gateway_error(error)
        x.status = 200 if reply.started else x.error.status
        if isinstance(x.error, PolicyDenied):
            x.outcome = "denied"
        else:
            x.outcome = "refused" if x.error.status < 500 else "error"

    async def _finish(self, x: Exchange, reply: Reply) -> None:
        """The last bytes."""
        if x.outcome == "cancelled":
            if not reply.disconnected:
                raise asyncio.CancelledError  # the server itself stops
            return
        if x.error is not None:
            body = x.error.body()
            if reply.started:
                await reply.event(sse.event(body), last=True)
            else:
                headers = x.headers(settled=True)
                await reply.whole(x.status, headers, _encode(body), b"application/json")
        elif x.stream:
            if not reply.started:
                await reply.start_stream(x.headers(settled=True))
            await reply.event(last_events(x), last=True)
        else:
            headers = x.headers(settled=True)
            await reply.whole(200, headers, _encode(x.answer), b"application/json")


def _deadline(x: Exchange) -> contextlib.AbstractAsyncContextManager[Any]:
    """Raises TimeoutError inside at the request's deadline; most have none."""
    deadline_s = x.options.deadline_s
    if deadline_s is None:
        return _NO_DEADLINE
    x.ends_at = time.perf_counter() + deadline_s
    return asyncio.timeout(deadline_s)


def _draw(asked: Asked, team: str) -> float:
    found: float | None = asked.recall("draw", (team,))
    if found is not None:
        return found
    return asked.remember("draw", (team,), sticky_draw(sticky_id(asked.request, team)))


def sticky_id(request: WireRequest, team: str) -> str:
    """What stays the same over a conversation: the user, else how the conversation began."""
    if request.user:
        return f"{team}\0{request.user}"
    first: Any
    if isinstance(request, ChatCompletionRequest):
        users = (m for m in request.messages if m.role == "user")
        first = next(users, request.messages[0]).text()
    elif isinstance(request, EmbeddingRequest):
        first = request.input
    else:
        first = request.prompt
    return f"{team}\0{first}"


def _was_capped(x: Exchange) -> bool:
    """Whether the policy allowed fewer tokens than the client."""
    cap = x.decision.max_tokens if x.decision else None
    asked = x.facts.max_tokens if x.facts else None
    return cap is not None and (asked is None or cap < asked)
