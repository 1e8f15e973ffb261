"""What a series will have come to at a period's end, with an interval.

Days, divided by what the weekly profile expects of them, follow a local level model: today's level
is yesterday's plus a step, a day's value is its level plus noise, both in proportion to the level.
A Kalman filter gives it (Harvey, Forecasting, Structural Time Series Models and the Kalman Filter,
1989, section 2.1). Whether a level moves at all is seldom clear from some weeks, so nothing is
chosen: no drift has four tenths of the belief before the data are seen (the spike and slab of
Fruehwirth-Schnatter & Wagner, 2010, Journal of Econometrics 154), ratios on a grid share the rest,
and the likelihood weighs them. The interval holds its share of that mixture, which is narrower than
a normal distribution of the same variance where a few unlikely ratios bring most of it. Each
ratio's part is Student's t with the days that the profile leaves free, and weekdays' own errors
count as far as the days ahead lean on other weekdays than the past did.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import numpy as np
from msgspec import Struct

from gateway.insights.season import DAY_H, MIDDLE_EFFICIENCY, Hours, at_hours, profile

MIN_HOURS: Final = 2 * DAY_H
"""Less history is no ground for a forecast."""
_RHYTHM_DAYS: Final = 14
_RATIOS: Final = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Variance of a level's daily step over that of a day's noise."""
_NO_DRIFT: Final = 0.4
"""Belief in the first of them before any day was seen; the others share the rest. With more of it
intervals hold too seldom where levels drift by a hundredth or two a day, with less they are wide
where none does."""
_LEAST: Final = 0.05
"""Of the mean of all days: noise does not shrink with a level below it."""
_UNSEEN: Final = 0.3
"""How far a weekday that was not seen yet may lie from the others, as a share (standard
deviation): offices rest at weekends, games do not."""


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
    free = days - 7 if days >= _RHYTHM_DAYS else days - 1
    levels = [_filter(values, ratio) for ratio in _RATIOS]
    weights = _weights(levels)
    means = np.array([level.mean * total for level in levels])
    spreads = _student(coverage, free) * np.sqrt(
        [_variance(level, blocks, days) * (days - 1) / free for level in levels]
    )
    mean = float(weights @ means)
    wide = _holding(coverage, weights, means - mean, spreads)
    expected = spent + max(mean, 0.0)
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
    least = max(_LEAST * float(values.mean()), 1e-300)
    squares = logs = 0.0
    for value in values[1:]:
        predicted = variance + ratio
        scale = max(mean, least)
        error, spread = float(value) - mean, predicted + 1.0
        squares += (error / scale) ** 2 / spread
        logs += math.log(spread) + 2.0 * math.log(scale)
        gain = predicted / spread
        mean += gain * error
        variance = predicted * (1.0 - gain)
    count = len(values) - 1
    noise = max(squares / count, 1e-12)
    likelihood = -0.5 * (count * math.log(noise) + logs)
    return _Level(mean, variance, ratio, noise * max(mean, least) ** 2, likelihood)


def _weights(levels: Sequence[_Level]) -> Hours:
    """Belief in each of `_RATIOS`, float64 [8], with sum 1."""
    slab = (1 - _NO_DRIFT) / (len(levels) - 1)
    beliefs = np.array([level.likelihood for level in levels])
    beliefs += np.log([_NO_DRIFT, *[slab] * (len(levels) - 1)])
    weights = np.exp(beliefs - beliefs.max())
    return np.asarray(weights / weights.sum())


def _variance(level: _Level, blocks: Hours, days: int) -> float:
    """Of the sum of the days ahead under one ratio.

    Args:
        blocks: float64 [n], what the profile expects of each day ahead.
        days: of the past; the last of them is the day before blocks[0].
    """
    total = float(blocks.sum())
    later = np.cumsum(blocks[::-1])  # what a step of the level on each day moves
    moves = level.variance * total**2 + level.ratio * float((later**2).sum())
    seen = np.bincount(np.arange(days) % 7, minlength=7)
    lean = np.bincount((days + np.arange(len(blocks))) % 7, blocks, 7) - seen / days * total
    if days >= _RHYTHM_DAYS:
        factors = level.noise / (days / 7 * MIDDLE_EFFICIENCY) * np.ones(7)
    else:
        factors = np.where(seen == 0, (_UNSEEN * level.mean) ** 2, 0.0)
    own = float((blocks**2).sum())
    return level.noise * (moves + own) + float((factors * lean**2).sum())


def _holding(coverage: float, weights: Hours, means: Hours, spreads: Hours) -> float:
    """Half the width of the interval about 0 that holds its share of a mixture.

    Args:
        spreads: half the width that holds it of each part alone.
    """
    if not spreads.any():
        return 0.0
    each = NormalDist(0.0, 1.0 / NormalDist().inv_cdf(0.5 + coverage / 2))
    low, high = 0.0, float((spreads + np.abs(means)).max())
    for _ in range(40):
        half = (low + high) / 2
        inside = sum(
            weight * (each.cdf((half - mean) / spread) - each.cdf((-half - mean) / spread))
            for weight, mean, spread in zip(weights, means, spreads, strict=True)
            if spread
        )
        low, high = (half, high) if inside < coverage else (low, half)
    return high


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
