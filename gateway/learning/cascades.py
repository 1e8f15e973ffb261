"""What judging the answer adds to judging the question: cascades on outcomes, row by row.

Every ladder of the backends, with every bar, is climbed on the rows that heads and judges were
cross-fitted on; the settings on the upper hull of cost and quality there are then climbed on the
frozen test rows. All rungs that answered are paid for in full: that a rejected answer makes the
next one cheaper, as a draft, is not counted.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import asdict
from numpy.typing import NDArray

from gateway.learning.curves import Choices, Curves, Figure, by_merit, cost_curves, upper_hull
from gateway.learning.judges import Judged
from gateway.learning.outcomes import Outcomes
from gateway.learning.quality import FOLDS, Fitted

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
GAINS = (-1.0, 0.0, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.18, 0.22, 0.26, 0.3, 0.35, 0.4, 0.5, 0.6)
BARS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SKIPS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
MOST_BACKENDS = 4
"""Of which all ladders are tried; of more, the cheapest, the dearest and two between."""


class Setting(Struct, frozen=True):
    """One cascade; one backend alone is a ladder of one rung."""

    ladder: tuple[int, ...]
    min: float = 1.0
    min_gain: float = -1.0
    skip_below: float = 0.0


def settings(backends: int) -> Iterator[Setting]:
    """All that are tried."""
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


def climb(
    setting: Setting, quality: Floats, p_above: Floats, scores: Floats, costs: Floats
) -> tuple[Floats, Floats]:
    """(cost [N], score [N]) of one cascade, by the rules of serving.

    Args:
        quality: [N, K], predicted from the question.
        p_above: [N, K, K], of backend j once k has answered; NaN: k's answer cannot be judged.
    """
    rows, ladder = len(scores), setting.ladder
    cost, score = np.zeros(rows), np.zeros(rows)
    open_ = np.ones(rows, dtype=bool)
    for place, k in enumerate(ladder):
        above = list(ladder[place + 1 :])
        asked = open_ & ~(quality[:, k] < setting.skip_below) if above else open_
        cost += np.where(asked, costs[:, k], 0.0)
        score = np.where(asked, scores[:, k], score)
        if not above:
            break
        good = p_above[:, k, k]
        gain = p_above[:, k, above].max(axis=1) - good
        stands = (good >= setting.min) | (gain < setting.min_gain)
        open_ &= ~(asked & stands)
    return cost, score


def curve_of(
    outcomes: Outcomes, quality: Floats, judged: Judged, judge: str, fit: Mask, rows: Mask
) -> tuple[list[Setting], Choices]:
    """The settings on the hull of the rows `fit`, and what they cost and get on `rows`."""
    tried = list(settings(len(outcomes.backends)))
    p_above = judged.p_above[judge]

    def on(setting: Setting, part: Mask) -> tuple[Floats, Floats]:
        figures = (quality, p_above, outcomes.scores, outcomes.costs)
        return climb(setting, *(column[part] for column in figures))

    means = [tuple(column.mean() for column in on(setting, fit)) for setting in tried]
    points = {(float(c), float(s)): place for place, (c, s) in reversed([*enumerate(means)])}
    cost, score = upper_hull(*np.array(list(points)).T)
    best = [tried[points[point]] for point in zip(cost.tolist(), score.tolist(), strict=True)
            if point in points]  # fmt: skip
    spent, got = zip(*(on(setting, rows) for setting in best), strict=True)
    return best, Choices(np.stack(spent, axis=1), np.stack(got, axis=1))


def cascade_card(
    outcomes: Outcomes, fitted: Fitted, judged: Judged, groups: NDArray[np.int64]
) -> dict[str, Any] | None:
    """Areas of question alone and of question and answers on the frozen test rows; None without
    log-probabilities or without a dearer backend.

    Where no row is frozen, all rows stand for both sides.
    """
    complete = ~np.isnan(outcomes.scores).any(axis=1)
    test = complete & (fitted.folds == FOLDS)
    train = complete & ~test
    if not test.any() or not train.any():
        test = train = complete
    judge = "answer" if "answer" in judged.p_above else next(iter(judged.p_above), None)
    if judge is None or len(outcomes.backends) < 2 or not complete.any():
        return None
    best, choices = curve_of(outcomes, fitted.quality, judged, judge, train, test)
    scores, costs = outcomes.scores[test], outcomes.costs[test]
    price = outcomes.costs[train].mean(0, keepdims=True)
    routers = {
        "cascade": choices,
        "question": by_merit(fitted.quality[test], price, scores, costs),
        "oracle": by_merit(scores, costs, scores, costs),
    }
    curves = cost_curves(routers, scores, costs, groups[test])
    dearest = costs[:, -1].mean()
    return {
        "judge": judge,
        "rows": int(test.sum()),
        "area": {
            "question": asdict(Figure.of(curves.area("question"))),
            "question_and_answer": asdict(Figure.of(curves.area("cascade"))),
        },
        "cost_share_at_equal_quality": _shares(curves),
        "single": {
            name: {
                "cost_share": round(float(costs[:, k].mean() / dearest), 4),
                "quality": round(float(scores[:, k].mean()), 4),
            }
            for k, name in enumerate(outcomes.backends)
        },
        "above_single_at_its_cost": _above_singles(outcomes, choices, scores, costs),
        "settings": [
            {
                "cascade": [outcomes.backends[k] for k in setting.ladder],
                **{name: getattr(setting, name) for name in ("min", "min_gain", "skip_below")},
                "cost_share": round(float(choices.costs[:, at].mean() / dearest), 4),
                "quality": round(float(choices.scores[:, at].mean()), 4),
            }
            for at, setting in enumerate(best)
        ],
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
