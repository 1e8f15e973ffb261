"""What judging the answer adds to judging the question: cascades on outcomes, row by row.

Every ladder of the backends, with every bar, is climbed on the rows that heads and judges were
cross-fitted on, practice too; the settings on the upper hull of cost and quality there are then
climbed on the frozen test rows. Decisions weigh what answers are expected to cost; all rungs that
answered are paid for in full, as they came out: that a rejected answer makes the next one cheaper,
as a draft, is not counted.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import asdict, replace
from numpy.typing import NDArray

from gateway.learning.costs import ExpectedCosts, costs_at_one_load
from gateway.learning.curves import (
    Choices,
    Curves,
    Figure,
    by_merit,
    cost_curves,
    draws_of,
    upper_hull,
)
from gateway.learning.judges import Judged
from gateway.learning.outcomes import Outcomes
from gateway.learning.quality import FOLDS, Fitted

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
GAINS = (
    0.0,
    0.01,
    0.02,
    0.03,
    0.05,
    0.08,
    0.1,
    0.12,
    0.15,
    0.18,
    0.22,
    0.26,
    0.3,
    0.35,
    0.4,
    0.5,
    0.6,
    1.0,
)
BARS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SKIPS = (0.03, 0.06, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
RATES = (0.0, *np.geomspace(0.02, 8.0, 16).round(3).tolist())
SKIP_RATES = (*np.geomspace(0.05, 20.0, 14).round(3).tolist(), None)
"""Quality for the mean cost of the dearest backend's answers."""
MOST_BACKENDS = 4
"""Of which all ladders are tried; of more, the cheapest, the dearest and two between."""


class Setting(Struct, frozen=True):
    """One cascade; one backend alone is a ladder of one rung."""

    ladder: tuple[int, ...]
    min: float = 1.0
    min_gain: float = -1.0
    skip_gain: float = 1.0
    lambda_cost_usd: float = 0.0
    skip_lambda_cost_usd: float | None = None

    @property
    def weighs_costs(self) -> bool:
        """Whether it depends on prices."""
        return self.lambda_cost_usd > 0 or self.skip_lambda_cost_usd is not None


def settings(backends: int, dearest: float) -> Iterator[Setting]:
    """All that are tried.

    Args:
        dearest: mean dollars of the dearest backend's answers; 0: nobody knows.
    """
    places = range(backends)
    if backends > MOST_BACKENDS:
        places = sorted({0, backends // 3, 2 * backends // 3, backends - 1})  # type: ignore[assignment]
    for size in range(1, len(places) + 1):
        for ladder in combinations(places, size):
            if size == 1:
                yield Setting(ladder)
                continue
            for skip in SKIPS:
                yield from (Setting(ladder, 1.0, gain, skip) for gain in GAINS)
                yield from (Setting(ladder, bar, -1.0, skip) for bar in BARS)
            for rate in RATES if dearest > 0 else ():
                for skip in SKIP_RATES:
                    skip_usd = None if skip is None else _rounded(skip / dearest)
                    yield Setting(ladder, 1.0, 0.0, 1.0, _rounded(rate / dearest), skip_usd)


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")


def climb(
    setting: Setting,
    quality: Floats,
    p_above: Floats,
    scores: Floats,
    costs: Floats,
    expected: ExpectedCosts,
) -> tuple[Floats, Floats]:
    """(cost [N], score [N]) of one cascade, by the rules of serving.

    Args:
        quality: [N, K], predicted from the question.
        p_above: [N, K, K], of backend j once k has answered; NaN: k's answer cannot be judged.
        costs: [N, K], as they came out.
    """
    rows, ladder = len(scores), setting.ladder
    cost, score = np.zeros(rows), np.zeros(rows)
    open_ = np.ones(rows, dtype=bool)
    for place, k in enumerate(ladder):
        above = list(ladder[place + 1 :])
        asked = open_ & ~_skipped(setting, quality, expected.question, k, above)
        cost += np.where(asked, costs[:, k], 0.0)
        score = np.where(asked, scores[:, k], score)
        if not above:
            break
        good = p_above[:, k, k]
        toll = setting.lambda_cost_usd * expected.after[:, k, above]
        gain = (p_above[:, k, above] - toll).max(axis=1) - good
        stands = (good >= setting.min) | (gain < setting.min_gain)
        open_ &= ~(asked & stands)
    return cost, score


def _skipped(setting: Setting, quality: Floats, price: Floats, k: int, above: list[int]) -> Mask:
    """[N]: whether one of the rungs above is better by so much, by the question, that k is left
    out."""
    ahead = quality[:, above] - quality[:, [k]]
    out = ahead >= setting.skip_gain
    if setting.skip_lambda_cost_usd is not None:
        out |= ahead >= setting.skip_lambda_cost_usd * (price[:, above] - price[:, [k]])
    return np.asarray(out.any(axis=1))


class Climbed(Struct, frozen=True):
    """All settings on one part of the rows."""

    settings: list[Setting]
    choices: Choices
    """[N, settings]"""

    @classmethod
    def of(
        cls,
        tried: list[Setting],
        outcomes: Outcomes,
        quality: Floats,
        p_above: Floats,
        expected: ExpectedCosts,
        rows: Mask,
    ) -> "Climbed":
        """Climb them."""
        said = quality[rows], p_above[rows]
        true = outcomes.scores[rows], outcomes.costs[rows]
        price = expected.only(rows)
        spent, got = zip(*(climb(one, *said, *true, price) for one in tried), strict=True)
        return cls(tried, Choices(np.stack(spent, axis=1), np.stack(got, axis=1)))

    def best(self) -> list[int]:
        """Places of the settings on the upper hull of cost and quality."""
        cost, score = self.choices.costs.mean(0), self.choices.scores.mean(0)
        points = {pair: place for place, pair in reversed([*enumerate(_pairs(cost, score))])}
        return [points[pair] for pair in _pairs(*upper_hull(cost, score)) if pair in points]

    def as_good(self, quality: float) -> int | None:
        """Place of the cheapest setting with at least that quality, whatever prices are."""
        cost, score = self.choices.costs.mean(0), self.choices.scores.mean(0)
        free = np.array([not one.weighs_costs for one in self.settings])
        enough = np.flatnonzero((score >= quality) & free)
        return int(enough[np.argmin(cost[enough])]) if len(enough) else None


def _pairs(cost: Floats, score: Floats) -> list[tuple[float, float]]:
    return list(zip(cost.tolist(), score.tolist(), strict=True))


def cascade_card(
    outcomes: Outcomes, fitted: Fitted, judged: Judged, groups: NDArray[np.int64]
) -> dict[str, Any] | None:
    """Areas of question alone and of question and answers on the frozen test rows; None without
    log-probabilities or without a dearer backend.

    Frozen are the rows that the file marks as test, and those nearly the same as one; what is on
    the former alone stands under `marked`. Where no row is frozen, all rows but practice stand for
    both sides.
    """
    judge = "answer" if "answer" in judged.p_above else next(iter(judged.p_above), None)
    if judge is None or len(outcomes.backends) < 2:
        return None
    complete = ~np.isnan(outcomes.scores).any(axis=1)
    practice = outcomes.practice & ~np.isnan(judged.p_above[judge][:, 0, 0])
    complete &= ~outcomes.practice | practice
    test = complete & (fitted.folds == FOLDS) & ~practice
    train = complete & (fitted.folds != FOLDS)
    if not test.any() or not train.any():
        test = train = complete & ~practice
    if not test.any():
        return None
    fair = train & ~practice
    measured = fair if fair.any() else train
    outcomes = replace(outcomes, costs=costs_at_one_load(outcomes, fair))
    mean = 0.0 if outcomes.costs_assumed else float(outcomes.costs[measured, -1].mean())
    tried = list(settings(len(outcomes.backends), mean))
    expected = ExpectedCosts.of(outcomes, measured)
    learnt, seen = (
        Climbed.of(tried, outcomes, fitted.quality, judged.p_above[judge], expected, rows)
        for rows in (train, test)
    )
    best = learnt.best()
    choices = Choices(seen.choices.costs[:, best], seen.choices.scores[:, best])
    scores, costs = outcomes.scores[test], outcomes.costs[test]

    def curves_on(some: Mask) -> Curves:
        """Of some of the frozen rows."""
        rows = np.flatnonzero(test)[some]
        true = outcomes.scores[rows], outcomes.costs[rows]
        routers = {
            "cascade": Choices(choices.costs[some], choices.scores[some]),
            "question": by_merit(fitted.quality[rows], expected.question[rows], *true),
            "oracle": by_merit(*true, *true),
        }
        return cost_curves(routers, *true, groups[rows])

    curves, marked = curves_on(np.ones(len(scores), dtype=bool)), outcomes.test[test]
    dearest = costs[:, -1].mean()
    return {
        "judge": judge,
        "rows": int(test.sum()),
        "area": _areas(curves),
        "marked": (
            {"rows": int(marked.sum()), "area": _areas(curves_on(marked))}
            if marked.any() and not marked.all()
            else None
        ),
        "cost_share_at_equal_quality": _shares(curves),
        "single": {
            name: {
                "cost_share": round(float(costs[:, k].mean() / dearest), 4),
                "quality": round(float(scores[:, k].mean()), 4),
            }
            for k, name in enumerate(outcomes.backends)
        },
        "above_single_at_its_cost": _above_singles(outcomes, choices, scores, costs),
        "as_good_as_the_dearest": _as_good(outcomes, learnt, seen, (train, test), groups[test]),
        "settings": [_shown(outcomes, seen, at, dearest) for at in best],
    }


def _areas(curves: Curves) -> dict[str, Any]:
    return {
        "question": asdict(Figure.of(curves.area("question"))),
        "question_and_answer": asdict(Figure.of(curves.area("cascade"))),
    }


def _shown(outcomes: Outcomes, seen: Climbed, at: int, dearest: float) -> dict[str, Any]:
    setting = seen.settings[at]
    return {
        "cascade": [outcomes.backends[k] for k in setting.ladder],
        **{name: getattr(setting, name) for name in Setting.__struct_fields__[1:]},
        "cost_share": round(float(seen.choices.costs[:, at].mean() / dearest), 4),
        "quality": round(float(seen.choices.scores[:, at].mean()), 4),
    }


def _as_good(
    outcomes: Outcomes,
    learnt: Climbed,
    seen: Climbed,
    rows: tuple[Mask, Mask],
    groups: NDArray[np.int64],
) -> dict[str, Any] | None:
    """The cheapest cascade that reached the dearest backend's quality on the rows it was fitted on,
    whatever prices are, and what it does on the frozen ones, with its differences from that
    backend.
    """
    train, test = rows
    alone = learnt.settings.index(Setting((len(outcomes.backends) - 1,)))
    at = learnt.as_good(float(outcomes.scores[train, -1].mean()))
    if at is None or at == alone:
        return None
    spent = seen.choices.costs[:, [at, alone]]
    better = seen.choices.scores[:, at] - seen.choices.scores[:, alone]
    shares, gains = [], []
    for weights in draws_of(groups):
        total = weights @ spent
        shares += (total[:, 0] / total[:, 1]).tolist()
        gains += (weights @ better / weights.sum(1)).tolist()
    return {
        **_shown(outcomes, seen, at, float(outcomes.costs[test, -1].mean())),
        "cost_share": asdict(Figure.of(np.array(shares))),
        "quality_difference": asdict(Figure.of(np.array(gains))),
    }


def _shares(curves: Curves) -> dict[str, Any]:
    """The least share of the dearest backend's cost that gives its quality, by router."""
    return {
        name: asdict(Figure.of(curves.share_for(name, 1.0)))
        for name in ("cascade", "question", "single", "oracle")
    }


def _above_singles(
    outcomes: Outcomes, choices: Choices, scores: Floats, costs: Floats
) -> dict[str, float]:
    """Quality of the cascades above each backend but the cheapest and dearest, at its cost."""
    order = np.argsort(choices.costs.mean(0), kind="stable")
    cost, score = choices.costs.mean(0)[order], choices.scores.mean(0)[order]
    return {
        outcomes.backends[k]: round(
            float(np.interp(costs[:, k].mean(), cost, score) - scores[:, k].mean()), 4
        )
        for k in range(1, len(outcomes.backends) - 1)
    }
