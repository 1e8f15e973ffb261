"""What a series will have come to at a period's end, with an interval.

Days, divided by what the weekly profile expects of them, follow a local level model: today's level
is yesterday's plus a step, a day's value is its level plus noise. A Kalman filter gives the level
(Harvey, Forecasting, Structural Time Series Models and the Kalman Filter, 1989, section 2.1). How
large the steps are next to the noise is seldom clear from some weeks, so ratios on a grid are
weighed by their likelihood instead of trusting the likeliest. The sum of the days ahead is then
about normal; Student's t makes up for how few days its variance was estimated from, and the noise
is widened for the profile having been fitted to the very days that it is measured on.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import numpy as np
from msgspec import Struct

from gateway.insights.season import DAY_H, Hours, at_hours, profile

MIN_HOURS: Final = 2 * DAY_H
"""Less history is no ground for a forecast."""
_RHYTHM_DAYS: Final = 14
_RATIOS: Final = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Variance of a level's daily step over that of a day's noise."""


class Forecast(Struct, frozen=True, kw_only=True):
    """A sum at the period's end, in the series' unit, what is spent already included."""

    expected: float
    low: float
    high: float
    coverage: float
    """How often the truth should lie from low to high."""
    history_days: int
    note: str = ""
    """What makes it less certain than its interval says; empty: nothing known."""


class _Level(Struct, frozen=True):
    """The filtered state after the last day; variances relative to that of a day's noise."""

    mean: float
    variance: float
    ratio: float
    noise: float
    """A day's noise, variance."""
    likelihood: float


def forecast_sum(
    hours: Hours, first_hour: int, *, left: int, spent: float, coverage: float = 0.9
) -> Forecast | None:
    """`spent` plus what `left` more hours will bring; None with less than MIN_HOURS of history.

    Args:
        hours: float64 [n], full hours up to now.
        first_hour: hours[0] in hours since a week's begin.
    """
    if len(hours) < MIN_HOURS:
        return None
    days = len(hours) // DAY_H
    weekly = profile(hours, first_hour)
    skipped = len(hours) - days * DAY_H
    past = at_hours(weekly, first_hour + skipped, days * DAY_H).reshape(days, DAY_H).sum(axis=1)
    values = hours[skipped:].reshape(days, DAY_H).sum(axis=1) / past
    ahead = at_hours(weekly, first_hour + len(hours), left)
    blocks = np.add.reduceat(ahead, np.arange(0, left, DAY_H)) if left else np.zeros(0)
    total = float(blocks.sum())
    later = np.cumsum(blocks[::-1])[::-1]
    """Of each day and those after it: what a step of the level on that day moves."""
    levels = [_filter(values, ratio) for ratio in _RATIOS]
    weights = _weights([level.likelihood for level in levels])
    mean = sum(weight * level.mean for weight, level in zip(weights, levels, strict=True))
    days2, later2 = float((blocks**2).sum()), float((later**2).sum())
    variance = sum(
        weight
        * (
            level.noise * (level.variance * total**2 + level.ratio * later2 + days2)
            + ((level.mean - mean) * total) ** 2
        )
        for weight, level in zip(weights, levels, strict=True)
    )
    wide = _student(coverage, days - 1) * math.sqrt(variance * _fitted(days))
    expected = spent + max(mean, 0.0) * total
    return Forecast(
        expected=expected,
        low=max(spent, expected - wide),
        high=expected + wide,
        coverage=coverage,
        history_days=days,
        note=_note(days),
    )


def _filter(values: Hours, ratio: float) -> _Level:
    """The local level model's filter for one ratio; noise by maximum likelihood."""
    mean, variance = float(values[0]), 1.0
    squares = logs = 0.0
    for value in values[1:]:
        predicted = variance + ratio
        error, spread = float(value) - mean, predicted + 1.0
        squares += error * error / spread
        logs += math.log(spread)
        gain = predicted / spread
        mean += gain * error
        variance = predicted * (1.0 - gain)
    count = len(values) - 1
    noise = max(squares / count, (1e-6 * mean) ** 2, 1e-300)
    return _Level(mean, variance, ratio, noise, -0.5 * (count * math.log(noise) + logs))


def _weights(likelihoods: Sequence[float]) -> list[float]:
    best = max(likelihoods)
    shares = [math.exp(one - best) for one in likelihoods]
    return [share / sum(shares) for share in shares]


def _fitted(days: int) -> float:
    """By how much the variance of new days exceeds that of the days that made the profile."""
    weeks = days / 7
    return (weeks + 1) / (weeks - 1) if days >= _RHYTHM_DAYS else 1.0


def _student(coverage: float, freedom: int) -> float:
    """Two-sided quantile of Student's t (Cornish-Fisher, Abramowitz & Stegun 26.7.5)."""
    x = NormalDist().inv_cdf(0.5 + coverage / 2)
    return (
        x
        + (x**3 + x) / (4 * freedom)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * freedom**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * freedom**3)
    )


def _note(days: int) -> str:
    if days >= _RHYTHM_DAYS:
        return ""
    return f"{days} days of history: the week's rhythm is not known before {_RHYTHM_DAYS}"
