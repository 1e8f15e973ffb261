"""Forecasts: lengths with intervals, cached prefixes, latency under load, a day's money."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from gateway.ledger.records import AttemptRecord, DecidedOn, RequestRecord
from gateway.routing.forecasts import FIRST_TOKENS, Forecasts
from policies.model import BackendCard, Facts, RequestFeatures

CARD = BackendCard(name="small", tier="small", model="m")


class Prices:
    """A dollar-free price list: what was asked is what comes back."""

    def expected(self, backend: str, prompt: int, completion: int, cached: int = 0) -> int:
        return (prompt - cached) + 10 * completion


def record(**fields: Any) -> RequestRecord:
    given: dict[str, Any] = {
        "request_id": "r",
        "endpoint": "chat/completions",
        "model": "auto",
        "started_at": 0.0,
        "duration_ms": 1000.0,
        "ttft_ms": 200.0,
        "outcome": "ok",
        "status": 200,
        "cache": "miss",
        "task": "chat",
        "turns": 1,
        "backend": "small",
        "prompt_tokens": 100,
        "completion_tokens": 81,
        "attempts": (AttemptRecord(backend="small", ms=1000.0),),
        "decided_on": DecidedOn(loads={"small": 0.0}),
    }
    return RequestRecord(**{**given, **fields})


def facts(*, turns: int = 1, max_tokens: int | None = None, task: Any = "chat") -> Facts:
    features = RequestFeatures(task=task, difficulty=0.1, prompt_tokens=100, turns=turns)
    return Facts(features=features, model="auto", max_tokens=max_tokens)


def test_lengths_are_learned_by_backend_and_task_with_honest_intervals() -> None:
    """The median is found, and nine of ten new answers lie within the interval."""
    forecasts = Forecasts(Prices())
    assert forecasts.lengths("small", "chat")[0] == pytest.approx(FIRST_TOKENS)
    rng = np.random.default_rng(0)
    for tokens in np.exp(rng.normal(np.log(40), 0.5, 300)):
        forecasts.observe(record(completion_tokens=max(1, round(tokens))))
    median, low, high = forecasts.lengths("small", "chat")
    assert median == pytest.approx(40, rel=0.2)
    fresh = np.exp(rng.normal(np.log(40), 0.5, 2000))
    assert 0.82 < np.mean((fresh >= low) & (fresh <= high)) < 0.98
    # another task starts from the backend's own lengths, another backend from the first guess
    assert forecasts.lengths("small", "code")[0] == pytest.approx(median, rel=0.2)
    assert forecasts.lengths("base", "chat")[0] == pytest.approx(FIRST_TOKENS)


def test_cost_stops_at_max_tokens_and_discounts_cached_prefixes() -> None:
    """A cap bounds the estimate; long conversations pay for the part that is not cached."""
    forecasts = Forecasts(Prices())
    for _ in range(50):
        forecasts.observe(record(completion_tokens=50, turns=3, cached_prompt_tokens=80))
        forecasts.observe(record(completion_tokens=50, turns=1))
    assert forecasts.estimate(facts(max_tokens=5), CARD).cost_nano_usd == 100 + 50
    short = forecasts.estimate(facts(), CARD).cost_nano_usd
    long = forecasts.estimate(facts(turns=4), CARD).cost_nano_usd
    assert short is not None
    assert long is not None
    assert short - long == 80


def test_latency_follows_what_was_measured_and_the_load_of_now() -> None:
    """0.2 s to the first token, 10 ms each after it; twice as busy takes twice as long."""
    forecasts = Forecasts(Prices())
    assert forecasts.latency_s(CARD, 10) is None
    for _ in range(20):
        forecasts.observe(record())
    assert forecasts.latency_s(CARD, 80) == pytest.approx(1.0, rel=0.01)
    busy = BackendCard(name="small", tier="small", model="m", load=1.0)
    assert forecasts.latency_s(busy, 80) == pytest.approx(2.0, rel=0.01)


def test_hits_and_failures_teach_nothing() -> None:
    """A reused answer took no time and no tokens; an error has no length."""
    forecasts = Forecasts(Prices())
    forecasts.observe(record(cache="exact"))
    forecasts.observe(record(outcome="error", backend=None))
    assert forecasts.lengths("small", "chat")[0] == pytest.approx(FIRST_TOKENS)
    assert forecasts.latency_s(CARD, 10) is None


def test_a_day_counts_up_and_starts_over_at_midnight() -> None:
    """By policy; yesterday's money is not today's."""
    forecasts = Forecasts(Prices())
    noon = datetime(2026, 3, 4, 12, tzinfo=UTC)
    forecasts.spend("p", noon, 2_000_000_000)
    forecasts.spend("p", noon, 1_000_000_000)
    assert forecasts.day("p", noon) == (3.0, 2)
    assert forecasts.day("q", noon) == (0.0, 0)
    assert forecasts.day("p", datetime(2026, 3, 5, tzinfo=UTC)) == (0.0, 0)
