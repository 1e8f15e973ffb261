"""What is usual of an hourly series, and how far sums of some hours stray from it.

Expected of an hour is its weekly profile times the level of the week before (a weighted median, so
that a jump does not hide itself), times what the hour before leaves: hours hang together. How far
that errs is measured on the past as if it had been the future: each week by the profile of the
others, each day by the level of the week before it. Errors have two parts, whose variances are
fitted over busy and quiet hours together: one in proportion (hours that hang together stray
together) and one of chance, which falls as 1 / expected (few requests, unequal in price).
"""

import math
from typing import Final

import numpy as np
from msgspec import Struct

from gateway.insights.season import DAY_H, WEEK_H, Hours, at_hours, profile

FEW: Final = 0.1
"""Of the expected: less counts as this much, as nothing has no logarithm."""
_LEAST_SPREAD: Final = 0.08
_BINS: Final = 6
_FEWEST: Final = 2 * DAY_H
"""Hours with something expected of them; fewer tell nothing of errors."""
_CLIPPED: Final = 1.5
"""In usual spreads: an hour passes on no more than this, whatever happened in it."""
_MOST_PASSED_ON: Final = 0.8


class Errors(Struct, frozen=True, kw_only=True):
    """Of log(value / expected) of some hours' sum."""

    common: float
    """Variance of the part in proportion."""
    chance: float
    """Variance of the other part, times what is expected."""
    passed_on: float
    """Of the log error of the hour before."""

    def score(self, ratio: float, expected: float) -> float:
        """How many usual spreads a value over its expectation is away from 1.

        The proportional part is log-normal, the other about normal, so there is no formula: it is
        the z of the likeliest pair of errors, z common / s and z chance / s, that gives the ratio
        (first order reliability: Hasofer & Lind, 1974).
        """
        chance = self.chance / expected
        common = max(self.common, _LEAST_SPREAD**2 - chance, 1e-12)
        spread = math.sqrt(common + chance)
        low, high = max(-0.999 * spread / max(chance, 1e-12), -50.0), 50.0
        for _ in range(40):
            z = (low + high) / 2
            reached = math.exp(z * common / spread) * (1 + z * chance / spread)
            low, high = (z, high) if reached < ratio else (low, z)
        return (low + high) / 2


class Band:
    """Learnt from the past: float64 [n] hours, oldest first.

    Args:
        first_hour: of the past, in hours since a week's begin.
        most: the longest sum that is asked for, hours.
    """

    def __init__(self, past: Hours, first_hour: int, *, most: int) -> None:
        self._first_hour = first_hour
        self._weekly = profile(past, first_hour)
        self.level = _level(past[-WEEK_H:], self._shape(len(past), -min(len(past), WEEK_H)))
        self._errors: list[Errors] = []
        usual = _usual(past, first_hour)
        known = past[len(past) - len(usual) :]
        logs = np.zeros(len(known))
        there = usual > 0
        logs[there] = _logs(known[there], usual[there])
        if self.level > 0 and there.sum() >= _FEWEST:
            self._clip = _CLIPPED * 1.4826 * float(np.median(np.abs(logs[there])))
            clipped = np.clip(logs, -self._clip, self._clip)
            self._errors = [_errors(known, usual, clipped, count) for count in range(1, most + 1)]

    def __bool__(self) -> bool:
        """Whether there is one: the series ran, long enough."""
        return bool(self._errors)

    def expected(self, start: int, count: int, before: float) -> float:
        """Of `count` hours from `start` on, counted from the past's first.

        Args:
            before: the value of the hour before them.
        """
        hour = self.level * float(self._shape(start, -1)[0])
        left = float(
            np.clip(_logs(np.array([before]), np.array([hour]))[0], -self._clip, self._clip)
        )
        usual = self.level * float(self._shape(start, count).sum())
        return usual * math.exp(self._errors[count - 1].passed_on * left)

    def score(self, actual: float, expected: float, count: int) -> float:
        """How far `count` hours lie from what is expected of them, in usual spreads."""
        return self._errors[count - 1].score(max(actual / expected, FEW), expected)

    def _shape(self, start: int, count: int) -> Hours:
        """Of the hours from `start` on; a negative count: of those before it."""
        begin = self._first_hour + start + min(count, 0)
        return at_hours(self._weekly, begin, abs(count))


def _usual(past: Hours, first_hour: int) -> Hours:
    """What would have been expected of past hours by others, float64 [m]: of the last m of them."""
    hours = len(past)
    fold = WEEK_H if hours >= 2 * WEEK_H else DAY_H
    shape = np.empty(hours)
    for stop in range(hours, 0, -fold):
        start = max(stop - fold, 0)
        rest = np.concatenate([past[:start], past[stop:]])
        weekly = profile(rest, first_hour if start else first_hour + stop)
        shape[start:stop] = at_hours(weekly, first_hour + start, stop - start)
    first = min(WEEK_H, hours // 2)
    levels = np.empty(hours)
    for stop in range(hours, first, -DAY_H):
        begin = max(stop - DAY_H, first)
        week = slice(max(begin - WEEK_H, 0), begin)
        levels[begin:stop] = _level(past[week], shape[week])
    return np.asarray((shape * levels)[first:])


def _level(values: Hours, shape: Hours) -> float:
    """Median of value over shape, each hour weighed by its shape."""
    ratios = values / shape
    order = np.argsort(ratios)
    weights = np.cumsum(shape[order])
    return float(ratios[order][np.searchsorted(weights, weights[-1] / 2)])


def _errors(values: Hours, usual: Hours, clipped: Hours, count: int) -> Errors:
    """Of sums of `count` hours.

    Args:
        values, usual, clipped: float64 [m]; the last is each hour's own log error, within bounds.
    """
    sums, expected = (np.convolve(one, np.ones(count), "valid")[1:] for one in (values, usual))
    before = clipped[: len(sums)]
    there = expected > 0
    sums, expected, before = sums[there], expected[there], before[there]
    logs = _logs(sums, expected)
    bound = float(np.abs(clipped).max())
    together = float(before @ np.clip(logs, -bound, bound))
    passed_on = min(max(together / max(float(before @ before), 1e-300), 0.0), _MOST_PASSED_ON)
    common, chance = _parts(np.abs(logs - passed_on * before), expected)
    return Errors(common=common, chance=chance, passed_on=passed_on)


def _parts(sizes: Hours, expected: Hours) -> tuple[float, float]:
    """(common, chance): variance = common + chance / expected, by weighted least squares over bins
    of like expectation, each with the variance that its median deviation stands for."""
    bins = np.array_split(np.argsort(expected), _BINS)
    variances = np.array([(1.4826 * np.median(sizes[one])) ** 2 for one in bins])
    few = np.array([(1 / expected[one]).mean() for one in bins])
    common, chance = float(variances.mean()), 0.0
    for _ in range(3):  # a variance errs by its own size
        weights = 1 / np.maximum(common + chance * few, 1e-4) ** 2
        mean_few, mean = (float(np.average(one, weights=weights)) for one in (few, variances))
        slope = float(weights @ ((few - mean_few) * (variances - mean)))
        chance = max(slope / max(float(weights @ (few - mean_few) ** 2), 1e-300), 0.0)
        common = mean - chance * mean_few
        if common < 0:
            common, chance = 0.0, mean / mean_few
    return common, chance


def _logs(values: Hours, expected: Hours) -> Hours:
    return np.asarray(np.log(np.maximum(values, FEW * expected) / expected))
