"""The weekly rhythm of an hourly series, and how far it strays from it.

Days differ by weekday and hours by the time of day, so the profile is a product of both, mixed with
the mean of each of the week's 168 hours as weeks of history grow. Means are of the middle half of
the values: one bad day does not shape the rhythm. Without two whole weeks weekdays count as equal.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Hours = NDArray[np.float64]
"""One value per hour, the oldest first."""

DAY_H, WEEK_H = 24, 168
_FLOOR = 0.02
"""Of the mean hour: a share below it is noise."""
_PRIOR_WEEKS = 4
"""From so many weeks on, an hour of the week counts as much as the product."""


def profile(hours: Hours, first_hour: int) -> Hours:
    """How busy each hour of the week is, float64 [168], with mean 1; all 1 without history.

    Args:
        hours: float64 [n], the oldest first.
        first_hour: of the week (or any number of hours since a week's begin) of hours[0].
    """
    skipped = -first_hour % DAY_H
    days = (len(hours) - skipped) // DAY_H
    if days <= 0 or not hours.any():
        return np.ones(WEEK_H)
    first = first_hour + skipped
    table = hours[skipped : skipped + days * DAY_H].reshape(days, DAY_H)
    by_hour = np.array([middle_mean(column) for column in table.T])
    by_hour = np.maximum(by_hour / max(by_hour.mean(), 1e-300), _FLOOR)
    by_day = _by_day(table.sum(axis=1)) if days >= 14 else np.ones(7)
    slots = (first + np.arange(WEEK_H)) % WEEK_H
    product = np.empty(WEEK_H)
    product[slots] = by_day.repeat(DAY_H) * np.tile(by_hour, 7)
    weeks = len(hours) // WEEK_H
    if weeks < 2:
        return _scaled(product)
    recent = hours[len(hours) - weeks * WEEK_H :]
    own = np.array([middle_mean(column) for column in recent.reshape(weeks, WEEK_H).T])
    placed = np.empty(WEEK_H)
    placed[(first_hour + len(hours) - weeks * WEEK_H + np.arange(WEEK_H)) % WEEK_H] = own
    placed /= max(placed.mean(), 1e-300)
    mixed = (weeks * placed + _PRIOR_WEEKS * product) / (weeks + _PRIOR_WEEKS)
    return _scaled(np.maximum(mixed, _FLOOR))


def _scaled(weekly: Hours) -> Hours:
    weekly /= weekly.mean()
    return weekly


def _by_day(totals: Hours) -> Hours:
    """Weekday factors in the order of the first seven days, relative to their own week."""
    weeks = len(totals) // 7
    table = totals[len(totals) - weeks * 7 :].reshape(weeks, 7)
    table = table / np.maximum(table.mean(axis=1, keepdims=True), 1e-300)
    factors = np.array([middle_mean(column) for column in table.T])
    return np.roll(np.maximum(factors, _FLOOR), len(totals) % 7)


def middle_mean(values: Iterable[float]) -> float:
    """Mean of the middle half (of everything below four values)."""
    ordered = np.sort(np.asarray(list(values), dtype=float))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def at_hours(weekly: Hours, first_hour: int, count: int) -> Hours:
    """The profile along `count` hours from `first_hour` on."""
    return weekly[(first_hour + np.arange(count)) % WEEK_H]
