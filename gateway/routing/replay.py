"""Past traffic through another policy: what it would have cost, and how good it would have been.

Costs are estimates at today's prices, except where the policy takes the backend that answered: then
it is what was booked. Quality is a doubly robust estimate over requests with feedback: the head's
prediction for the policy's choice, corrected by what was measured wherever the policy agrees with
what chance chose then. Where chance had no part in the past choice and the policy chooses
otherwise, nothing was measured that could correct the prediction, and no figure is given.

Source: Dudík, Langford, Li 2011, "Doubly Robust Policy Evaluation and Learning", §2.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.ledger.money import usd_text
from gateway.ledger.pricing import CostEstimator
from gateway.routing.climbs import SOURCES
from gateway.routing.columns import NOBODY, Decided, Table, decide_all
from gateway.routing.expecting import NO_CASCADE, Expecting, picked, rungs_of
from gateway.routing.judges import NO_JUDGES, Judges
from gateway.routing.past import HITS, Past, table_of
from gateway.routing.policy_book import LoadedPolicy
from policies.model import BackendCard

Floats = NDArray[np.float64]
MIN_REWARDS = 30
"""Fewer opinions give an interval that says nothing."""
MAX_UNSUPPORTED = 0.01
"""Share of rows on which nothing can correct the prediction."""
BLOCK = 100
"""Rows between two looks at a day's money."""


class Estimate(Struct, frozen=True, kw_only=True):
    """A doubly robust estimate with its 95 % interval."""

    value: float
    low: float
    high: float
    rows: int
    effective_sample_size: float


def replay(
    past: Past,
    policies: list[LoadedPolicy],
    cards: Mapping[str, BackendCard],
    estimator: CostEstimator,
    judges: Judges = NO_JUDGES,
) -> dict[str, Any]:
    """The report of `headgate policy replay`.

    Args:
        judges: of cascades' answers; none: only recorded verdicts, and the question's promise.
    """
    began = time.perf_counter()
    table = table_of(past, cards, estimator)
    expecting = Expecting(past, cards, estimator, judges)
    reports = [_report(loaded, past, table, expecting) for loaded in policies]
    seconds = time.perf_counter() - began
    return {
        "rows": len(past) + past.skipped,
        "replayed": len(past),
        "skipped": past.skipped,
        "actual": _actual(past),
        "policies": reports,
        "rows_per_s": round(len(past) * len(policies) / seconds) if seconds else None,
        "assumptions": [
            "costs of other backends than the one that answered are estimates at today's prices",
            "a cascade's verdicts are the recorded ones where the same judge saw that rung's "
            "answer, else what it probably makes of one; all rungs that answer are paid for",
            "a cached answer stays one only where the policy takes the backend that wrote it",
            "requests with feedback stand for all in the quality estimate",
        ],
    }


def decide_in_time(
    loaded: LoadedPolicy, table: Table, expecting: Expecting | None = None
) -> Decided:
    """As `decide_all`; a policy that paces a day's money sees what its rows before have cost."""
    goals = [a.objective for a in (*loaded.policy.rules, loaded.policy.default)]
    if not any(goal is not None and goal.per == "day" for goal in goals):
        return decide_all(loaded.policy, table)
    parts: list[Decided] = []
    spent: dict[str, tuple[float, int]] = {}
    for start in range(0, len(table), BLOCK):
        part = table.rows(slice(start, start + BLOCK))
        days = [datetime.fromtimestamp(us / 1e6, UTC).date().isoformat()
                for us in part.started_us.tolist()]  # fmt: skip
        before = [spent.get(day, (0.0, 0)) for day in days]
        numbers = dict(part.numbers) | {
            "day_spent_usd": np.array([usd for usd, _ in before]),
            "day_requests": np.array([float(count) for _, count in before]),
        }
        found = decide_all(loaded.policy, replace(part, numbers=numbers))
        costs = np.nan_to_num(picked(part.costs, found.winner))
        if expecting is not None:
            costs = np.nan_to_num(expecting.of(loaded.policy, part, found, start).cost)
        for day, cost in zip(days, costs.tolist(), strict=True):
            usd, count = spent.get(day, (0.0, 0))
            spent[day] = (usd + cost / 1e9, count + 1)
        parts.append(found)
    return Decided(*(np.concatenate([getattr(p, name) for p in parts])
                     for name in Decided.__struct_fields__))  # fmt: skip


def _places(names: Any, cards: Mapping[str, BackendCard]) -> NDArray[np.int64]:
    order = {name: place for place, name in enumerate(cards)}
    return np.array([order.get(name, NOBODY) for name in names], dtype=np.int64)


def _report(loaded: LoadedPolicy, past: Past, table: Table, expecting: Expecting) -> dict[str, Any]:
    found = decide_in_time(loaded, table, expecting)
    expected = expecting.of(loaded.policy, table, found)
    columns = past.columns
    names = list(table.cards)
    answered = _places(columns["backend"], table.cards)
    first = _places(columns["first"], table.cards)
    same = (expected.stands == answered) & (answered != NOBODY)
    same &= np.where(expected.source == NO_CASCADE, 0, expected.asked) == rungs_of(past)
    booked = np.array(columns["cost_nano_usd"], dtype=np.float64)
    costs = np.where(same, booked, np.nan_to_num(expected.cost))
    served = found.winner != NOBODY
    quality, why = doubly_robust(past, table, found, first, expected.stands)
    rules = [*(rule.name for rule in loaded.policy.rules), "default"]
    counts = np.bincount(found.rule, minlength=len(rules)).tolist()
    size = max(1, len(past))
    asked = expected.source[expected.source != NO_CASCADE]
    return {
        "policy": loaded.ref,
        "cost_usd": usd_text(round(float(costs.sum()))),
        "saved_usd": usd_text(round(float(booked.sum() - costs.sum()))),
        "same_choice": round(float((found.winner == first).mean()), 6) if len(past) else None,
        "shares": {
            name: round(float(expected.shares[:, place].sum()) / size, 6)
            for place, name in enumerate(names)
        },
        "rungs": _mean(np.where(served, expected.asked, np.nan)),
        "verdicts": {
            name: int((asked == place).sum())
            for place, name in enumerate(SOURCES)
            if (asked == place).any()
        },
        "rules": dict(zip(rules, counts, strict=True)),
        "denied": int(found.denied.sum()),
        "unanswered": int((~served & ~found.denied).sum()),
        "predicted_quality": _mean(expected.quality),
        "mean_latency_s": _mean(expected.seconds),
        "quality": None if quality is None else _plain(quality),
        "quality_why": why,
    }


def _plain(estimate: Estimate) -> dict[str, float]:
    return {name: round(getattr(estimate, name), 4) for name in Estimate.__struct_fields__}


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return round(float(known.mean()), 6) if len(known) else None


def _actual(past: Past) -> dict[str, Any]:
    """What happened: cost, shares by backend, hits, opinions."""
    columns = past.columns
    backends, counts = np.unique(
        np.array([name or "-" for name in columns["backend"]], dtype=str), return_counts=True
    )
    size = max(1, len(past))
    return {
        "cost_usd": usd_text(int(sum(columns["cost_nano_usd"]))),
        "shares": {
            str(name): round(int(count) / size, 6)
            for name, count in zip(backends, counts, strict=True)
        },
        "cache_hits": sum(verdict in HITS for verdict in columns["cache"]),
        "mean_score": _mean(past.rewards),
        "opinions": int((~np.isnan(past.rewards)).sum()),
    }


def doubly_robust(
    past: Past,
    table: Table,
    found: Decided,
    first: NDArray[np.int64],
    stands: NDArray[np.int64],
) -> tuple[Estimate | None, str | None]:
    """The policy's quality over rows with feedback; else None, and why.

    Args:
        stands: [N], whose answer is given; NOBODY also where a judge would have to say.
    """
    answered = _places(past.columns["backend"], table.cards)
    chosen = np.where(rungs_of(past) > 0, answered, first)  # a cascade chose the one that stood
    # a fallback's answer tells nothing of the first choice, and nobody judged a denial
    rows = ~np.isnan(past.rewards) & (chosen == answered) & (chosen != NOBODY)
    rows &= found.winner != NOBODY
    unjudged = float((stands[rows] == NOBODY).mean()) if rows.any() else 0.0
    if unjudged > MAX_UNSUPPORTED:
        return None, (
            f"on {unjudged:.1%} of the answers with feedback this policy's judge would look at an "
            "answer that was not judged then; `shadow` or a split to the cascade makes it possible"
        )
    rows &= stands != NOBODY
    count = int(rows.sum())
    if count < MIN_REWARDS:
        return None, f"{count} answers have feedback; at least {MIN_REWARDS} are needed"
    logged, wanted = chosen[rows], stands[rows]
    propensity = np.array(past.columns["probability"], dtype=np.float64)[rows]
    agrees = logged == wanted
    unsupported = float((~agrees & (propensity >= 1.0)).mean())
    if unsupported > MAX_UNSUPPORTED:
        return None, (
            f"on {unsupported:.1%} of the answers with feedback the past policy left nothing to "
            "chance and this one chooses otherwise; [routing] explore, or a split, makes it "
            "possible"
        )
    rewards = past.rewards[rows]
    quality = _filled(table.quality[rows], logged, rewards)
    weights = np.where(agrees, 1 / np.maximum(propensity, 1e-9), 0.0)
    picks = np.arange(count)
    terms = quality[picks, wanted] + weights * (rewards - quality[picks, logged])
    value = float(terms.mean())
    spread = 1.96 * float(terms.std(ddof=1)) / np.sqrt(count)
    total = float((weights**2).sum())
    return (
        Estimate(
            value=value,
            low=max(value - spread, 0.0),  # scores are
            high=min(value + spread, 1.0),
            rows=count,
            effective_sample_size=float(weights.sum() ** 2 / total) if total else 0.0,
        ),
        None,
    )


def _filled(quality: Floats, logged: NDArray[np.int64], rewards: Floats) -> Floats:
    """Predictions; where the head knows no quality, the mean score of that backend, or of all."""
    filled = quality.copy()
    for place in range(quality.shape[1]):
        own = rewards[logged == place]
        mean = float(own.mean()) if len(own) else float(rewards.mean())
        filled[:, place] = np.where(np.isnan(quality[:, place]), mean, quality[:, place])
    return filled
