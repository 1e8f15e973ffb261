"""Objectives: the backends in the order of what they are predicted to be worth for one request.

What is unknown counts against a backend: without a predicted quality it comes after those that have
one, without a predicted cost it is never within a limit. Latency alone does not, for it is measured
on answers: whoever was never asked would never be. Of equal merit the cheaper one comes first, then
the less loaded one.
"""

from datetime import UTC, datetime
from math import isfinite

from msgspec import Struct

from policies.candidates import Candidates
from policies.conditions import Situation, local_time
from policies.model import BackendCard, BudgetState, Objective, Reason

NANO = 1_000_000_000
STEPS = 1e9
"""Of merit: what falls on the same billionth is equal, and then the price decides."""
_DAY_S = 86_400
_LEAST_EXPECTED = 1.0


class Ranking(Struct, frozen=True):
    """Backends, the best first, and why."""

    order: tuple[str, ...]
    reason: Reason


class _Rated(Struct, frozen=True):
    """One backend's predictions."""

    card: BackendCard
    quality: float | None
    cost_nano_usd: int | None
    latency_s: float | None

    @property
    def price(self) -> float:
        """For sorting: unknown counts as the dearest."""
        return float("inf") if self.cost_nano_usd is None else self.cost_nano_usd

    def __str__(self) -> str:
        quality = "?" if self.quality is None else f"{self.quality:.3f}"
        cost = "?" if self.cost_nano_usd is None else f"${self.cost_nano_usd / NANO:.3g}"
        latency = "?" if self.latency_s is None else f"{self.latency_s:.3g} s"
        return f"{self.card.name} quality {quality} cost {cost} latency {latency}"


def rank(goal: Objective, candidates: Candidates, situation: Situation) -> Ranking:
    """The usable backends in the order of the objective."""
    among = {card.name for target in goal.among for card in candidates.of(target)}
    rated = [_rate(card, situation) for card in situation.cards.values() if card.name in among]
    if goal.minimise is not None:
        least = goal.min_quality or 0.0
        what = f"cheapest with quality >= {least:g}"
        if rated and not any(r.quality is not None and r.quality >= least for r in rated):
            what = f"nobody with quality >= {least:g}, so the best"
        rated.sort(key=lambda r: _cheapness(r, least))
    else:
        limit = limit_nano_usd(goal, situation.budget, situation.now)
        what = "best quality" + ("" if limit is None else f" within ${limit / NANO:.3g}")
        if rated and limit is not None and not any(r.price <= limit for r in rated):
            what = f"nobody within ${limit / NANO:.3g}, so the cheapest"
        rated.sort(key=lambda r: _worth(r, goal, limit))
    why = f"{what}: {'; '.join(map(str, rated)) or 'nobody can answer'}"
    reason = Reason(subject="objective", matched=bool(rated), why=why)
    return Ranking(tuple(r.card.name for r in rated), reason)


def _rate(card: BackendCard, situation: Situation) -> _Rated:
    estimate = situation.facts.estimates.get(card.name)
    return _Rated(
        card,
        situation.facts.features.quality.get(card.name),
        estimate.cost_nano_usd if estimate else None,
        estimate.latency_s if estimate else None,
    )


def _cheapness(rated: _Rated, least: float) -> tuple[object, ...]:
    """Good enough by price; then the others, the best first."""
    quality = -1.0 if rated.quality is None else rated.quality
    if quality >= least:
        return (not rated.card.ready, 0, rated.price, -quality, rated.card.load)
    return (not rated.card.ready, 1, -_level(quality), rated.price, rated.card.load)


def _worth(rated: _Rated, goal: Objective, limit: int | None) -> tuple[object, ...]:
    """Within the limit by merit; then the others, the cheapest first."""
    within = limit is None or rated.price <= limit
    if not within:
        return (not rated.card.ready, 1, rated.price, 0.0, rated.card.load)
    merit = merit_of(rated.quality, rated.cost_nano_usd, rated.latency_s, goal)
    return (not rated.card.ready, 0, -_level(merit), rated.price, rated.card.load)


def _level(merit: float) -> float:
    """Merit in steps, rounded half to even."""
    steps = merit * STEPS
    return float(round(steps)) if isfinite(steps) else steps


def merit_of(
    quality: float | None, cost_nano_usd: int | None, latency_s: float | None, goal: Objective
) -> float:
    """quality − λ·cost − μ·latency; −inf without a quality, or without a cost that counts."""
    if quality is None:
        return float("-inf")
    merit = quality
    if goal.lambda_cost_usd:
        if cost_nano_usd is None:
            return float("-inf")
        merit -= goal.lambda_cost_usd * cost_nano_usd / NANO
    if goal.mu_latency_s and latency_s is not None:
        merit -= goal.mu_latency_s * latency_s
    return merit if isfinite(merit) else float("-inf")


def limit_nano_usd(goal: Objective, budget: BudgetState, now: datetime) -> int | None:
    """The most that one answer may be expected to cost; None: any.

    A day's money is what is left of it, spread over as many requests as the rest of the day brings
    at the rate so far.
    """
    if goal.max_cost_usd is None:
        return None
    if goal.per == "request":
        return round(goal.max_cost_usd * NANO)
    at = local_time(now, UTC)
    passed = at.hour * 3600 + at.minute * 60 + at.second
    left_usd = max(0.0, goal.max_cost_usd - budget.day_spent_usd)
    expected = budget.day_requests * (_DAY_S - passed) / max(passed, 1)
    return round(left_usd / max(expected, _LEAST_EXPECTED) * NANO)
