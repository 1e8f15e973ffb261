"""Hours in which a series leaves its band.

Expected of an hour is its weekly profile times the level of the week before (a weighted median, so
that a jump does not hide itself). Sums of the last one, two and three hours are tested, so that a
doubling shows in its first hour where the series is steady and by the third where it is not. Each
is judged by log(value / expected) over how much that usually strays at this time of day (median
absolute deviation): hours that hang together stray together, and small hours stray more. The bound
grows with the number of series looked at: whoever has a hundred teams is not called a hundred times
as often for nothing.
"""

import math
from statistics import NormalDist
from typing import Final

import numpy as np
from msgspec import Struct

from gateway.insights.season import DAY_H, WEEK_H, Hours, at_hours, profile

MIN_HOURS: Final = 3 * DAY_H
"""Less history has no band."""
WINDOW_H: Final = 3
_LEAST_SPREAD: Final = 0.08
_FEW: Final = 0.1
"""Of the expected: less counts as this much, as nothing has no logarithm."""
_LEAST_CHANGE: Final = math.log(1.25)
_FALSE_ALARMS_A_MONTH: Final = 0.2
_TAILS: Final = 1.4
"""Of the bound, over a normal distribution's: levels drift, and quiet weekends are noisier."""


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
    band = Band(hours[:past], first_hour)
    if band.level <= 0:  # it hardly ever ran
        return None
    bound = _bound(series)
    found: Anomaly | None = None
    for count in range(1, WINDOW_H + 1):
        actual = float(hours[-count:].sum())
        expected = band.expected(len(hours) - count, count)
        change = _log_ratio(actual, expected)
        score = change / band.spread(len(hours) - 1, count)
        strange = abs(score) > bound and abs(change) >= _LEAST_CHANGE
        if strange and (found is None or abs(score) > abs(found.score)):
            found = Anomaly(hours=count, actual=actual, expected=expected, score=score)
    return found


class Band:
    """What is usual, learnt from the past: float64 [n] hours, oldest first."""

    def __init__(self, past: Hours, first_hour: int) -> None:
        self._past = past
        self._first_hour = first_hour
        self._weekly = profile(past, first_hour)
        starts = range(len(past) - WEEK_H, -WEEK_H, -WEEK_H)
        levels = [self._level(max(start, 0), start + WEEK_H) for start in starts]
        self.level = levels[0]
        self._usual = np.concatenate(
            [
                (level or self.level) * self._shape(max(start, 0), start + WEEK_H)
                for start, level in zip(starts, levels, strict=True)
            ][::-1]
        )
        """Of every past hour, by the level of its own week."""

    def expected(self, start: int, count: int) -> float:
        """Of `count` hours from `start` on, counted from the past's first."""
        return self.level * float(self._shape(start, start + count).sum())

    def spread(self, last: int, count: int) -> float:
        """Usual size of log(value / expected) of `count` hours that end about this time of day."""
        values, usual = (
            np.convolve(one, np.ones(count), "valid") for one in (self._past, self._usual)
        )
        apart = (np.arange(count - 1, len(self._past)) - last) % DAY_H
        near = (apart <= 1) | (apart == DAY_H - 1)
        ratios = np.log(np.maximum(values[near], _FEW * usual[near]) / usual[near])
        weeks = max(len(self._past) / WEEK_H, 1.5)
        unseen = math.sqrt((weeks + 1) / (weeks - 1))  # the profile was fitted to these hours
        return max(1.4826 * unseen * float(np.median(np.abs(ratios))), _LEAST_SPREAD)

    def _shape(self, start: int, stop: int) -> Hours:
        return at_hours(self._weekly, self._first_hour + start, stop - start)

    def _level(self, start: int, stop: int) -> float:
        """Median of value over shape, each hour weighed by its shape."""
        shape = self._shape(start, stop)
        ratios = self._past[start:stop] / shape
        order = np.argsort(ratios)
        weights = np.cumsum(shape[order])
        return float(ratios[order][np.searchsorted(weights, weights[-1] / 2)])


def _log_ratio(actual: float, expected: float) -> float:
    return math.log(max(actual, _FEW * expected) / expected)


def _bound(series: int) -> float:
    """Crossed by chance `_FALSE_ALARMS_A_MONTH` times among all the series."""
    tests = 30 * DAY_H * series * 2
    return -NormalDist().inv_cdf(_FALSE_ALARMS_A_MONTH / tests) * _TAILS
