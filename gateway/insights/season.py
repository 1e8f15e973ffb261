"""The weekly rhythm of an hourly series, and how far it strays from it.

Days differ by weekday and hours by the time of day, so the profile is a product of both, mixed with
the mean of each of the week's 168 hours as far as these differ from the product by more than noise
would make them (empirical Bayes: Efron & Morris, 1973, JASA 68). Means are of the middle half: one
bad day does not shape the rhythm. Without two whole weeks weekdays count as equal.
"""

import numpy as np
from numpy.typing import NDArray

Hours = NDArray[np.float64]
"""One value per hour, the oldest first."""

DAY_H, WEEK_H = 24, 168
MIDDLE_EFFICIENCY = 0.8
"""Of a mean of the middle half, next to the mean: its variance is so much larger."""
_FLOOR = 0.02
"""Of the mean hour: a share below it is noise."""
_ODD = 0.95
"""Of the hours of the week: those beyond are as this one, where all are asked how they vary."""


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
    by_hour = middle_means(table)
    by_hour = np.maximum(by_hour / max(by_hour.mean(), 1e-300), _FLOOR)
    by_day = _by_day(table.sum(axis=1)) if days >= 14 else np.ones(7)
    slots = (first + np.arange(WEEK_H)) % WEEK_H
    product = np.empty(WEEK_H)
    product[slots] = by_day.repeat(DAY_H) * np.tile(by_hour, 7)
    weeks = len(hours) // WEEK_H
    if weeks < 2:
        return _scaled(product)
    recent = hours[len(hours) - weeks * WEEK_H :].reshape(weeks, WEEK_H)
    places = (first_hour + len(hours) - weeks * WEEK_H + np.arange(WEEK_H)) % WEEK_H
    rhythm = _scaled(product)[places]
    of_mean = recent / np.maximum(recent.mean(axis=1, keepdims=True), 1e-300) / rhythm
    own = middle_means(of_mean)
    mixed = np.empty(WEEK_H)
    mixed[places] = rhythm * (1 + _own_share(of_mean, own) * (own - 1))
    return _scaled(np.maximum(mixed, _FLOOR))


def _own_share(of_product: Hours, own: Hours) -> float:
    """How much of what sets an hour of the week apart from the product is its own, not noise.

    Args:
        of_product: float64 [weeks, 168], each hour over what the product makes of it.
        own: float64 [168], their means.
    """
    noise = of_product.var(axis=0, ddof=1) / (MIDDLE_EFFICIENCY * len(of_product))
    apart = (own - 1) ** 2
    noise, apart = (np.minimum(one, np.quantile(one, _ODD)).mean() for one in (noise, apart))
    return float(max(1 - noise / max(apart, 1e-300), 0.0))


def _scaled(weekly: Hours) -> Hours:
    weekly /= weekly.mean()
    return weekly


def _by_day(totals: Hours) -> Hours:
    """Weekday factors in the order of the first seven days, relative to their own week."""
    weeks = len(totals) // 7
    table = totals[len(totals) - weeks * 7 :].reshape(weeks, 7)
    table = table / np.maximum(table.mean(axis=1, keepdims=True), 1e-300)
    return np.roll(np.maximum(middle_means(table), _FLOOR), len(totals) % 7)


def middle_means(table: Hours) -> Hours:
    """Of each column the mean of its middle half (of everything below four rows)."""
    ordered = np.sort(table, axis=0)
    cut = len(ordered) // 4
    return np.asarray(ordered[cut : len(ordered) - cut].mean(axis=0))


def at_hours(weekly: Hours, first_hour: int, count: int) -> Hours:
    """The profile along `count` hours from `first_hour` on."""
    return weekly[(first_hour + np.arange(count)) % WEEK_H]
