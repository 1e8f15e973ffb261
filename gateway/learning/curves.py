"""What a router is worth: APGR, CPT and the area under its cost–quality curve, with intervals.

PGR, APGR and CPT are RouteLLM's: requests are sent to the strong backend in the order of a score;
PGR is the share of the gap between weak and strong that is recovered, APGR its mean over all shares
of strong calls, CPT(x) the smallest share with PGR x. Tied scores are sent in random order, in
expectation, so a constant score gives exactly the shuffled control: APGR 0.5, CPT50 0.5, CPT80 0.8.

The *area* compares budgets, for any number of backends: (router − control) ÷ (oracle − control) of
quality over budgets from 0 to 100 % of the dearest backend's cost. The router takes the backend
with the greatest quality − λ·cost, λ ≥ 0; the control is the best random mixture of single backends
within the same budget (for two backends: the shuffled router); the oracle knows the scores.

Intervals: 95 %, by a bootstrap over groups of near-duplicates; all routers share the draws.

Source: Ong et al. 2024, "RouteLLM: Learning to Route LLMs with Preference Data", §3.
"""

from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 1000
CHUNK = 100
"""Draws held at once: their weights are [CHUNK, N]."""
POINTS = 129
"""Values of λ, or of the length from which a prompt goes to the dearest."""
BUDGETS = np.linspace(0.0, 1.0, 101)
"""Shares of the dearest backend's cost."""


class Figure(Struct, frozen=True):
    """A figure with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, draws: Floats) -> "Figure":
        """The first entry is the estimate, the others are the bootstrap's."""
        if not np.isfinite(draws[0]):
            return cls(None, None, None)
        known = draws[1:][np.isfinite(draws[1:])]
        if not len(known):
            return cls(round(float(draws[0]), 4), None, None)
        low, high = np.quantile(known, (0.025, 0.975))
        return cls(round(float(draws[0]), 4), round(float(low), 4), round(float(high), 4))


class Ranking(Struct, frozen=True):
    """APGR and CPT of one score, one entry per draw (the first: all rows once)."""

    apgr: Floats
    cpt50: Floats
    cpt80: Floats


def draws_of(groups: NDArray[np.int64], *, count: int = DRAWS, seed: int = 11) -> Iterator[Floats]:
    """How often each row counts, chunk by chunk, [≤ CHUNK, N]; the first row is all ones."""
    rng = np.random.default_rng(seed)
    _, place = np.unique(groups, return_inverse=True)
    size = int(place.max()) + 1
    yield np.ones((1, len(groups)))
    for start in range(0, count, CHUNK):
        times = rng.multinomial(size, np.full(size, 1 / size), min(CHUNK, count - start))
        yield times[:, place].astype(np.float64)


def ranking(score: Floats, gain: Floats, groups: NDArray[np.int64]) -> Ranking:
    """Send the greatest score to the strong backend first.

    Args:
        score: [N].
        gain: [N], the strong backend's score − the weak one's.
        groups: [N], near-duplicates share one.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)  # of the blocks of ties
    parts = [_ranked(weights[:, order], gain[order], ends) for weights in draws_of(groups)]
    return Ranking(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _ranked(
    weights: Floats, gain: Floats, ends: NDArray[np.int64]
) -> tuple[Floats, Floats, Floats]:
    calls = np.cumsum(weights, axis=1)[:, ends]
    gained = np.cumsum(weights * gain, axis=1)[:, ends]
    total = gained[:, -1:]
    zero = np.zeros((len(weights), 1))
    share = np.concatenate([zero, calls / calls[:, -1:]], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pgr = np.where(total > 0, np.concatenate([zero, gained], axis=1) / total, np.nan)
    apgr = np.trapezoid(pgr, share, axis=1)
    return apgr, _first(share, pgr, 0.5), _first(share, pgr, 0.8)


def _first(share: Floats, pgr: Floats, wanted: float) -> Floats:
    """The smallest share at which the recovered part is `wanted`, between points linearly."""
    at = np.argmax(pgr >= wanted, axis=1)
    rows = np.arange(len(pgr))
    before = np.maximum(at - 1, 0)
    low, high = pgr[rows, before], pgr[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(high > low, (wanted - low) / (high - low), 0.0)
    found = share[rows, before] + part * (share[rows, at] - share[rows, before])
    return np.where(np.isfinite(pgr[:, -1]), found, np.nan)


class Choices(Struct, frozen=True):
    """What a router spends and gets at each of its settings, row by row."""

    costs: Floats
    """[N, L]"""
    scores: Floats
    """[N, L]"""


def by_merit(quality: Floats, price: Floats, scores: Floats, costs: Floats) -> Choices:
    """The backend with the greatest quality − λ·price, for λ from 0 to where all take the cheapest.

    Args:
        quality: [N, K], predicted; the true scores make the oracle.
        price: [N, K] or [1, K], as the router knows it.
        scores, costs: [N, K], as they came out.
    """
    price = np.broadcast_to(price, quality.shape)
    picks = []
    for weight in _weights(quality, price):
        merit = quality - weight * price
        best = merit >= merit.max(1, keepdims=True) - 1e-12
        picks.append(np.argmin(np.where(best, price, np.inf), axis=1))
    chosen = np.stack(picks, axis=1)
    return Choices(np.take_along_axis(costs, chosen, 1), np.take_along_axis(scores, chosen, 1))


def _weights(quality: Floats, price: Floats) -> Floats:
    """Values of λ at which choices change: quantiles of all gains per dollar."""
    ratios = [np.array([0.0])]
    for dear in range(quality.shape[1]):
        for cheap in range(quality.shape[1]):
            step = price[:, dear] - price[:, cheap]
            useful = (step > 0) & (quality[:, dear] > quality[:, cheap])
            ratios.append((quality[useful, dear] - quality[useful, cheap]) / step[useful])
    steps = np.quantile(np.concatenate(ratios), np.linspace(0, 1, POINTS - 1))
    return np.unique(np.concatenate([[0.0], steps, [steps[-1] * 2 + 1]]))


def by_threshold(score: Floats, scores: Floats, costs: Floats) -> Choices:
    """The dearest backend from a score on, the cheapest below."""
    place = np.argsort(np.argsort(-score, kind="stable"), kind="stable")
    limits = np.linspace(0, len(score), POINTS)
    dear = place[:, None] < limits[None, :]
    return Choices(
        np.where(dear, costs[:, -1:], costs[:, :1]), np.where(dear, scores[:, -1:], scores[:, :1])
    )


class Curves(Struct, frozen=True):
    """Quality at each budget, [1 + DRAWS, len(BUDGETS)], by router; `single`: the control."""

    quality: dict[str, Floats]
    dearest: Floats
    """[1 + DRAWS], the dearest backend's quality."""

    def area(self, name: str) -> Floats:
        """(router − control) ÷ (oracle − control), per draw."""
        control = np.trapezoid(self.quality["single"], BUDGETS, axis=1)
        best = np.trapezoid(self.quality["oracle"], BUDGETS, axis=1) - control
        with np.errstate(divide="ignore", invalid="ignore"):
            gained = np.trapezoid(self.quality[name], BUDGETS, axis=1) - control
            return np.where(best > 0, gained / best, np.nan)

    def share_for(self, name: str, part: float) -> Floats:
        """The smallest budget that gives `part` of the dearest backend's quality."""
        enough = self.quality[name] >= part * self.dearest[:, None] - 1e-12
        return np.where(enough.any(1), BUDGETS[np.argmax(enough, axis=1)], np.nan)


def cost_curves(
    routers: dict[str, Choices], scores: Floats, costs: Floats, groups: NDArray[np.int64]
) -> Curves:
    """Quality within each budget, for all routers on the same draws.

    Args:
        routers: among them `oracle`.
        scores, costs: [N, K], the cheapest backend first, the dearest last.
    """
    found: dict[str, list[Floats]] = {name: [] for name in (*routers, "single")}
    dearest: list[float] = []
    for weights in draws_of(groups):
        weights = weights / weights.sum(1, keepdims=True)
        singles = weights @ costs, weights @ scores
        dearest += singles[1][:, -1].tolist()
        spent = {name: (weights @ c.costs, weights @ c.scores) for name, c in routers.items()}
        for draw in range(len(weights)):
            limit = BUDGETS * singles[0][draw, -1]
            hull = upper_hull(singles[0][draw], singles[1][draw])
            found["single"].append(_within(limit, *hull))
            for name, (cost, score) in spent.items():
                points = cost[draw], score[draw]
                if name == "oracle":
                    points = upper_hull(*points)
                found[name].append(_within(limit, *points))
    return Curves({name: np.array(rows) for name, rows in found.items()}, np.array(dearest))


def _within(limit: Floats, cost: Floats, score: Floats) -> Floats:
    """Quality at budgets: 0 where nothing can be bought, flat beyond the last point."""
    order = np.argsort(cost, kind="stable")
    cost, score = cost[order], score[order]
    # within less than the cheapest, only a part of the requests is answered
    found = np.interp(limit, np.concatenate([[0.0], cost]), np.concatenate([[0.0], score]))
    return np.asarray(found)


def upper_hull(cost: Floats, score: Floats) -> tuple[Floats, Floats]:
    """The upper concave hull from the origin to the best point: mixtures by chance lie on it."""
    points = sorted(zip(cost.tolist(), score.tolist(), strict=True))
    hull: list[tuple[float, float]] = [(0.0, 0.0)]
    for x, y in points:
        if y <= hull[-1][1]:
            continue
        while len(hull) > 1 and _below(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return np.array([x for x, _ in hull]), np.array([y for _, y in hull])


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
