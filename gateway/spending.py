"""Money on its way through one request: estimated, held before anything runs, metered, settled.

What is held covers the dearest backend that may be asked: twice the prompt's estimate and, for a
stream, a slice of answer tokens at most, at a rate that is rarely too low. A stream that outgrows
its slice, in tokens or in what our engine says that it has cost so far, gets another one, or ends
with finish_reason "length" where the budget has no room; of others' servers on machines of ours
`gateway/accruing.py` looks at the time. An answer that is not streamed is held in
full, and capped there if the client named no length.
"""

from collections.abc import Mapping

import structlog

from backends.contract import EngineUsage, Usage
from gateway.dispatch.cascade_costs import climbing, judge_backend, judge_cost
from gateway.errors import BudgetUnavailable, GatewayError
from gateway.exchange import Exchange
from gateway.ledger.late_spending import by_backend
from gateway.ledger.pricing import price_usage
from gateway.ledger.reservation_log import Held
from gateway.ledger.slices import Reservation
from gateway.parts import Parts
from policies.model import Hedge

log = structlog.get_logger(__name__)

DEFAULT_ANSWER_TOKENS = 1024
"""Assumed of an answer without max_tokens."""
SLICE_TOKENS = 128
"""Of a stream's answer, held at a time."""
AHEAD_TOKENS = 16
"""How far a backend may be ahead of what we have seen."""


class Spending:
    """Holds and settles; one per gateway process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def estimates(self, x: Exchange) -> dict[str, int]:
        """What each candidate's whole answer should cost at most, nano-dollars."""
        assert x.facts is not None
        assert x.decision is not None
        tokens, prompt = answer_tokens(x), x.facts.features.prompt_tokens
        estimate = self._parts.estimator.estimate
        costs = {name: estimate(name, prompt, tokens) for name in x.decision.candidates}
        if not x.decision.rungs:
            return costs
        return climbing(x.decision, costs, judge_cost(x.decision, estimate, prompt, tokens))

    async def reserve(self, x: Exchange) -> None:
        """Hold money for `x.affordable` in all budgets concerned; none: nothing is held.

        Raises:
            BudgetSpent, BudgetReserved, BudgetUnavailable: nothing is held, nothing may run.
        """
        assert x.caller is not None
        assert x.decision is not None
        budgets, judge = self._parts.budgets, judge_backend(x.decision)
        asked = x.affordable if judge is None else (*x.affordable, judge)
        if not await budgets.concern(x.caller, x.tags, asked):
            return
        tokens = answer_tokens(x)
        if x.stream and not x.decision.rungs:
            tokens = min(tokens, SLICE_TOKENS)
        elif x.facts is not None and x.facts.max_tokens is None:
            x.token_cap = DEFAULT_ANSWER_TOKENS
        need = {name: self.ceiling(x, name, tokens) for name in x.affordable}
        most = _most(x, need)
        if x.decision.rungs:
            prompt = max(self._prompt_tokens(x, name) for name in x.affordable)
            look = judge_cost(x.decision, self._parts.estimator.estimate, prompt, tokens)
            most = max(climbing(x.decision, need, look).values())
            if judge is not None:
                need[judge] = need.get(judge, 0) + look * len(x.decision.rungs)
        x.reservation = await budgets.reserve(x.caller, most, request_id=x.request_id, tags=x.tags)
        try:
            await self._reserve_models(x, x.reservation, need)
            self._write_down(x, x.reservation)
        except BaseException:
            x.reservation.release()
            x.reservation = None
            raise

    async def _reserve_models(
        self, x: Exchange, reservation: Reservation, need: Mapping[str, int]
    ) -> None:
        """Hold in the backends' own budgets; one without room is not asked."""
        budgets = self._parts.budgets
        if not any(budgets.limits_model(name) for name in need):
            return
        reservation.models, refusal = await budgets.reserve_models(need, request_id=x.request_id)
        x.affordable = tuple(
            name
            for name in x.affordable
            if name in reservation.models or not budgets.limits_model(name)
        )
        if not x.affordable:
            assert refusal is not None, "somebody refused the last one"
            raise refusal

    def _write_down(self, x: Exchange, reservation: Reservation) -> None:
        assert x.caller is not None
        assert x.request is not None
        held = Held(
            request_id=x.request_id,
            nano_usd=reservation.nano_usd,
            at=x.started_at,
            endpoint=x.endpoint,
            model=x.request.model[:256],
            team=x.caller.team,
            key=x.caller.key_id,
            user=x.caller.user,
            tags=x.tags,
            stream=x.stream,
            backends=x.affordable,
            heeded_us=reservation.heeded_us,
        )
        try:
            self._parts.reservations.hold(held)
        except OSError as error:
            log.error("reservation_not_written", error=str(error))
            raise BudgetUnavailable("The disk refuses what budgets need; try again.") from None

    def ceiling(self, x: Exchange, backend: str, tokens: int) -> int:
        """What a prompt and `tokens` of its answer should cost at most, nano-dollars."""
        return self._parts.estimator.estimate(backend, self._prompt_tokens(x, backend), tokens)

    def _prompt_tokens(self, x: Exchange, backend: str) -> int:
        assert x.facts is not None
        facts = x.facts
        exact = facts.prompt_tokens_exact.get(backend)
        if exact is not None:
            return exact
        prompt = min(facts.prompt_tokens_bound, 2 * facts.features.prompt_tokens)
        return max(prompt, facts.features.prompt_tokens)

    def meter(self, x: Exchange, backend: str) -> "Meter | None":
        """Keeps a stream within its reservation; None: nothing limits it."""
        assert x.decision is not None
        if not x.stream or x.reservation is None or x.decision.rungs:
            return None  # all of a cascade is held from the beginning
        return Meter(self._parts, self, x, x.reservation, backend)

    def heeded_us(self, x: Exchange) -> int | None:
        """When the youngest budget was made that it was held against, or `settle` counts it in."""
        return self._parts.budgets.heeded_us if x.reservation is None else x.reservation.heeded_us

    def settle(self, x: Exchange) -> None:
        """Book what the request cost, and let go of the rest."""
        if x.reservation is None:
            if x.charges and x.caller is not None:  # a cached answer's question was encoded
                self._parts.budgets.add(x.caller, x.tags, by_backend(x.charges), at=x.started_at)
            return
        by_model = by_backend(x.charges)
        beyond = x.cost_nano_usd - x.reservation.nano_usd
        if beyond > 0 and x.caller is not None:
            self._parts.budgets.overruns.note(x.caller.key_id, beyond, x.started_at)
        x.reservation.settle(x.cost_nano_usd, by_model)
        x.reservation = None
        self._parts.reservations.end(x.request_id)


class Meter:
    """One stream's money, slice by slice."""

    def __init__(
        self,
        parts: Parts,
        spending: Spending,
        x: Exchange,
        reservation: Reservation,
        backend: str,
    ) -> None:
        self._parts = parts
        self._spending = spending
        self._x = x
        self._reservation = reservation
        self._backend = backend
        self.tokens = self._covered(min(answer_tokens(x), SLICE_TOKENS))
        """Chunks up to which no look is needed."""
        self._accrued: Usage | None = None
        """As last told on the way, by our engine."""

    def is_due(self, accrued: Usage | None) -> bool:
        """Whether the stream has come to the end of what is held for it.

        Args:
            accrued: what it has used so far, if this chunk says.
        """
        if accrued is not None and self._says_cost(accrued):
            self._accrued = accrued
            if self._x.cost_nano_usd + self._price(accrued) > self._reservation.nano_usd:
                return True
        return self._x.tokens_seen >= self.tokens or self._x.out_of_money

    def _says_cost(self, used: Usage) -> bool:
        price = self._parts.backend_settings[self._backend].price
        return used.headgate is not None or price is not None

    async def extend(self) -> bool:
        """Hold another slice, or what of one there is room for; False if that is nothing."""
        x = self._x
        seen = x.tokens_seen
        for more in () if x.out_of_money else (SLICE_TOKENS, 2 * AHEAD_TOKENS):
            want = min(seen + more, max(answer_tokens(x), seen + 1))
            if await self._hold(want):
                self.tokens = self._covered(want)
                return True
        await self._hold(seen)  # what it has cost anyway
        log.info("stream_stopped", request_id=x.request_id)
        return False

    async def _hold(self, tokens: int) -> bool:
        """Hold what the request will have cost when its answer has so many tokens."""
        x = self._x
        missing = x.cost_nano_usd + self._cost_at(tokens) - self._reservation.nano_usd
        if missing > 0:
            try:
                await self._parts.budgets.extend(self._reservation, missing, self._backend)
                self._parts.reservations.more(x.request_id, self._reservation.nano_usd)
            except (GatewayError, OSError) as error:
                log.info("slice_refused", request_id=x.request_id, why=type(error).__name__)
                return False
        return True

    def _covered(self, tokens: int) -> int:
        whole = answer_tokens(self._x)
        return tokens if tokens >= whole else max(tokens - AHEAD_TOKENS, 1)

    def _cost_at(self, tokens: int) -> int:
        """What the answer will have cost at `tokens`; from what the backend has told, if it has."""
        told = self._accrued
        if told is None or told.completion_tokens <= 0:
            return self._spending.ceiling(self._x, self._backend, tokens)
        ahead = max(tokens - told.completion_tokens, 0)
        usual = self._parts.estimator.estimate(self._backend, 0, ahead)
        return self._price(told) + max(usual, self._at_its_own_rate(told, ahead))

    def _at_its_own_rate(self, told: Usage, tokens: int) -> int:
        """What further tokens cost if they take a quarter longer than those so far."""
        if told.headgate is None:
            return 0
        decode_ns = told.headgate.decode_ns * tokens * 5 // (4 * told.completion_tokens)
        return self._price(Usage(headgate=EngineUsage(decode_ns=decode_ns)))

    def _price(self, used: Usage) -> int:
        return price_so_far(self._parts, self._x, self._backend, used)


def price_so_far(parts: Parts, x: Exchange, backend: str, used: Usage) -> int:
    """Nano-dollars of what a request under way has used at a backend so far."""
    return price_usage(
        parts.settings,
        parts.backend_settings[backend],
        used,
        elapsed_s=0.0,
        in_flight=1,
        at=x.started_at,
        request_id=x.request_id,
        seq=0,
    ).cost_nano_usd


def hedge_of(x: Exchange) -> Hedge | None:
    """How a request may be hedged: by its policy, if it is short, somebody waits for it, and its
    client sets no cap on what it costs."""
    assert x.decision is not None
    assert x.facts is not None
    hedge, tokens = x.decision.hedge, x.facts.max_tokens
    if hedge is None or x.in_batch or x.decision.rungs:
        return None
    if x.options.max_cost_nano_usd is not None:
        return None
    caps = [cap for cap in (tokens, x.decision.max_tokens) if cap is not None]
    if not caps or min(caps) > hedge.max_answer_tokens:
        return None
    return hedge if x.facts.features.prompt_tokens <= hedge.max_prompt_tokens else None


def _most(x: Exchange, need: Mapping[str, int]) -> int:
    """What the dearest may take; a hedged request is asked of two at once."""
    dearest = sorted(need.values())[-2:]
    return max(dearest) if hedge_of(x) is None else dearest[-1] + dearest[0]


def answer_tokens(x: Exchange) -> int:
    """The most tokens of all answers together."""
    assert x.facts is not None
    assert x.decision is not None
    facts = x.facts
    if facts.endpoint == "embeddings":
        return 0
    tokens = min(
        facts.max_tokens or DEFAULT_ANSWER_TOKENS,
        x.decision.max_tokens or facts.max_tokens or DEFAULT_ANSWER_TOKENS,
    )
    return tokens * (getattr(x.request, "n", None) or 1)


def tightest(*caps: int | None) -> int | None:
    """The smallest of caps that are there."""
    return min((cap for cap in caps if cap is not None), default=None)
