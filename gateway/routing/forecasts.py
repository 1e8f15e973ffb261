"""What an answer will probably take: tokens, cost and seconds, learned from settled requests.

Lengths of answers are lognormal by backend and task: a moving mean and variance of the logarithm
give a median and the interval that holds nine of ten. Until a pair has been seen often, the
backend's own lengths, and before those a wide guess, pull it towards them. Costs come from the
current prices, less the part of the prompt that was found cached for such conversations so far.
Latency is the measured time to the first token and per token, stretched by the load of now over the
load at which it was measured.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from gateway.ledger.records import RequestRecord
from policies.model import BackendCard, Estimate, Facts

FIRST_TOKENS = 128.0
FIRST_SPREAD = 1.2
"""Median and standard deviation of the logarithm, before anything was seen."""
PULL = 4.0
"""So many observations weigh as much as what a pair starts from."""
MEMORY = 64.0
"""Older observations fade: the mean is over about so many."""
NINE_OF_TEN = 1.645
NANO = 1_000_000_000


class Prices(Protocol):
    """Costs before they arise; see CostEstimator."""

    def expected(
        self, backend: str, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0
    ) -> int:
        """Nano-dollars."""


class Moving(Struct):
    """A mean and a variance that follow what was seen lately."""

    mean: float = 0.0
    variance: float = 0.0
    count: float = 0.0

    def add(self, value: float) -> None:
        """One more observation."""
        self.count = min(self.count + 1, MEMORY)
        weight = 1 / self.count
        off = value - self.mean
        self.mean += weight * off
        self.variance = (1 - weight) * (self.variance + weight * off * off)

    def pulled(self, mean: float, variance: float) -> tuple[float, float]:
        """Mean and variance with PULL observations of the given ones added."""
        share = self.count / (self.count + PULL)
        off = self.mean - mean
        spread = share * self.variance + (1 - share) * variance + share * (1 - share) * off * off
        return mean + share * off, spread


class _Speed(Struct):
    """How fast one backend answers, and how busy it was then."""

    ttft_s: Moving
    tpot_s: Moving
    load: Moving


class _Day(Struct):
    """What one policy's requests of a day were expected to cost."""

    date: str = ""
    nano_usd: int = 0
    requests: int = 0


class Forecasts:
    """One per gateway process."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._lengths: dict[tuple[str, str], Moving] = {}
        self._cached: dict[tuple[str, bool], Moving] = {}
        self._kept: dict[str, Moving] = {}
        self._speeds: dict[str, _Speed] = {}
        self._days: dict[str, _Day] = {}

    def observe(self, record: RequestRecord) -> None:
        """Learn from an answer that was generated."""
        if record.backend is None or record.outcome != "ok" or record.cache in _HITS:
            return
        tokens, prompt = record.completion_tokens, record.prompt_tokens
        if tokens > 0:
            for task in (record.task, ""):
                self._lengths.setdefault((record.backend, task), Moving()).add(math.log(tokens))
        if prompt > 0:
            self._note_cached(record, prompt)
        self._time(record, tokens)

    def _note_cached(self, record: RequestRecord, prompt: int) -> None:
        """What was found cached: of the prompt, or of what the turn before had left there."""
        assert record.backend is not None
        warm = record.decided_on.warm if record.decided_on is not None else None
        found = record.cached_prompt_tokens
        if warm is not None and warm[0] == record.backend and warm[1] > 0:
            kept = self._kept.setdefault(record.backend, Moving())
            kept.add(min(found / min(warm[1], prompt), 1.0))
            return
        later = record.turns > 1 and warm is None
        self._cached.setdefault((record.backend, later), Moving()).add(min(found / prompt, 1.0))

    def _time(self, record: RequestRecord, tokens: int) -> None:
        assert record.backend is not None
        seconds = record.attempts[-1].ms / 1e3 if record.attempts else record.duration_ms / 1e3
        speed = self._speeds.setdefault(record.backend, _Speed(Moving(), Moving(), Moving()))
        first = speed.ttft_s.mean
        if record.ttft_ms is not None:
            first = record.ttft_ms / 1e3
            speed.ttft_s.add(first)
        if tokens > 1:
            speed.tpot_s.add(max(0.0, seconds - first) / (tokens - 1 if first else tokens))
        loads = record.decided_on.loads if record.decided_on is not None else {}
        speed.load.add(loads.get(record.backend, 0.0))

    def estimates(self, facts: Facts, cards: Mapping[str, BackendCard]) -> dict[str, Estimate]:
        """One for each backend that generates."""
        return {
            name: self.estimate(facts, card)
            for name, card in cards.items()
            if facts.endpoint in card.endpoints
        }

    def estimate(self, facts: Facts, card: BackendCard) -> Estimate:
        """What this backend's answer will probably take."""
        median, low, high = self.lengths(card.name, facts.features.task)
        if facts.endpoint == "embeddings":
            median = low = high = 0.0
        elif facts.max_tokens is not None:
            median, low, high = (min(n, float(facts.max_tokens)) for n in (median, low, high))
        prompt = facts.features.prompt_tokens
        cached = self.cached_tokens(facts, card.name)
        return Estimate(
            cost_nano_usd=self._prices.expected(card.name, prompt, round(median), cached),
            latency_s=self.latency_s(card, median),
            answer_tokens=median,
            answer_tokens_low=low,
            answer_tokens_high=high,
        )

    def price(self, backend: str, prompt_tokens: int, answer_tokens: int = 1) -> int:
        """Nano-dollars of an answer of that length."""
        return self._prices.expected(backend, prompt_tokens, answer_tokens)

    def cached_tokens(self, facts: Facts, backend: str) -> int:
        """Of the prompt, those that the backend will probably find cached.

        Where a conversation was, all that it left there, until that is known to be too hopeful;
        elsewhere what a first turn finds.
        """
        prompt, warm = facts.features.prompt_tokens, facts.warm
        if warm is not None and warm.backend == backend:
            kept = self._kept.get(backend)
            return int(min(warm.tokens, prompt) * (1.0 if kept is None else kept.mean))
        later = facts.features.turns > 1 and warm is None
        seen = self._cached.get((backend, later))
        return 0 if seen is None else int(prompt * seen.mean)

    def lengths(self, backend: str, task: str) -> tuple[float, float, float]:
        """Median, 5th and 95th percentile of an answer's tokens."""
        mean, variance = self._logarithm(backend, task)
        off = NINE_OF_TEN * math.sqrt(variance)
        return math.exp(mean), math.exp(mean - off), math.exp(mean + off)

    def _logarithm(self, backend: str, task: str) -> tuple[float, float]:
        """Mean and variance of the logarithm of an answer's tokens."""
        mean, variance = math.log(FIRST_TOKENS), FIRST_SPREAD**2
        for key in ((backend, ""), (backend, task)):
            seen = self._lengths.get(key)
            if seen is not None:
                mean, variance = seen.pulled(mean, variance)
        return mean, variance

    def cost_nano_usd(self, facts: Facts, backend: str, max_tokens: int | None) -> int:
        """Of an answer of the usual length, `estimate`'s without the rest of it: where no policy
        asks for one."""
        tokens = 0.0
        if facts.endpoint != "embeddings":
            tokens = math.exp(self._logarithm(backend, facts.features.task)[0])
            for most in (facts.max_tokens, max_tokens):
                tokens = tokens if most is None else min(tokens, float(most))
        cached = self.cached_tokens(facts, backend)
        return self._prices.expected(backend, facts.features.prompt_tokens, round(tokens), cached)

    def latency_s(self, card: BackendCard, tokens: float) -> float | None:
        """Seconds to the last token at the load of now; None before the first answer."""
        speed = self._speeds.get(card.name)
        if speed is None or not speed.tpot_s.count:
            return None
        stretch = (1 + card.load) / (1 + speed.load.mean)
        return stretch * (speed.ttft_s.mean + tokens * speed.tpot_s.mean)

    def first_token_s(self, card: BackendCard) -> float | None:
        """Seconds that nearly all answers need to their first token at the load of now; None
        before the first stream."""
        speed = self._speeds.get(card.name)
        if speed is None or not speed.ttft_s.count:
            return None
        stretch = (1 + card.load) / (1 + speed.load.mean)
        return stretch * (speed.ttft_s.mean + NINE_OF_TEN * math.sqrt(speed.ttft_s.variance))

    def latency_ms(self, facts: Facts, card: BackendCard, most_tokens: int) -> float | None:
        """Milliseconds to the last token of an answer of the usual length, within the bound; None
        before the first answer."""
        if card.name not in self._speeds:
            return None
        tokens = min(self.lengths(card.name, facts.features.task)[0], float(most_tokens))
        seconds = self.latency_s(card, tokens)
        return None if seconds is None else seconds * 1e3

    def day(self, policy: str, now: datetime) -> tuple[float, int]:
        """(dollars, requests) that this process has expected of a policy since midnight UTC."""
        found = self._days.get(policy)
        if found is None or found.date != _date(now):
            return 0.0, 0
        return found.nano_usd / NANO, found.requests

    def spend(self, policy: str, now: datetime, nano_usd: int) -> None:
        """Note one more request of a policy with a day's limit."""
        day = self._days.setdefault(policy, _Day())
        if day.date != _date(now):
            day.date, day.nano_usd, day.requests = _date(now), 0, 0
        day.nano_usd += nano_usd
        day.requests += 1


_HITS = ("exact", "semantic")


def _date(now: datetime) -> str:
    return now.date().isoformat()
