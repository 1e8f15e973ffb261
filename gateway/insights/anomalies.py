"""Hours in which a series leaves its band.

Sums of the last one, two and three hours are tested, so that a doubling shows in its first hour
where the series is steady and by the third where it is not. The bound grows with the number of
series looked at: whoever has a hundred teams is not called a hundred times as often for nothing.
"""

import math
from statistics import NormalDist
from typing import Final

from msgspec import Struct

from gateway.insights.band import FEW, Band
from gateway.insights.season import DAY_H, Hours

MIN_HOURS: Final = 3 * DAY_H
"""Less history has no band."""
WINDOW_H: Final = 3
_LEAST_CHANGE: Final = math.log(1.25)
_FALSE_ALARMS_A_MONTH: Final = 0.25
_TAILS: Final = 1.12
"""Of the bound, over a normal distribution's: spreads are estimated, three windows tried."""


class Anomaly(Struct, frozen=True, kw_only=True):
    """The last hours of a series are not like it."""

    hours: int
    """How many, the last one included."""
    actual: float
    expected: float
    """Of these hours together, in the series' unit."""
    score: float
    """In usual spreads; negative: too little."""


def find(hours: Hours, first_hour: int, *, series: int = 1) -> Anomaly | None:
    """Whether the last hour ends up to three strange ones.

    Args:
        hours: float64 [n], full hours, up to eight weeks of them.
        first_hour: hours[0] in hours since a week's begin.
        series: how many are watched together.
    """
    past = len(hours) - WINDOW_H
    if past < MIN_HOURS:
        return None
    band = Band(hours[:past], first_hour, most=WINDOW_H)
    if not band:  # it hardly ever ran
        return None
    bound = _bound(series)
    found: Anomaly | None = None
    for count in range(1, WINDOW_H + 1):
        start = len(hours) - count
        actual = float(hours[start:].sum())
        expected = band.expected(start, count, float(hours[start - 1]))
        score = band.score(actual, expected, count)
        change = math.log(max(actual / expected, FEW))
        strange = abs(score) > bound and abs(change) >= _LEAST_CHANGE
        if strange and (found is None or abs(score) > abs(found.score)):
            found = Anomaly(hours=count, actual=actual, expected=expected, score=score)
    return found


def _bound(series: int) -> float:
    """Crossed by chance `_FALSE_ALARMS_A_MONTH` times among all the series."""
    tests = 30 * DAY_H * series * 2
    return -NormalDist().inv_cdf(_FALSE_ALARMS_A_MONTH / tests) * _TAILS
