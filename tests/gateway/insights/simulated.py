"""Simulated ledgers: a team's spending by the hour, with a rhythm and noise."""

import numpy as np
from numpy.typing import NDArray

WEEK_H = 168


def team_hours(
    seed: int,
    *,
    weeks: int,
    requests_per_hour: float = 400.0,
    noise: float = 0.15,
    drift: float = 0.02,
) -> NDArray[np.float64]:
    """Spending per hour, float64 [168 * weeks], of a team that begins on a Monday at midnight.

    Requests are Poisson about a day's wave and quiet weekends; a request's cost is lognormal with
    a variation of 1. Hours lie off by lognormal noise, half of which lasts into the next hour, and
    the whole drifts from day to day.
    """
    draw = np.random.default_rng(seed)
    count = WEEK_H * weeks
    hour = np.arange(count)
    peak = draw.uniform(10, 16)
    day = 1.0 + draw.uniform(0.5, 0.9) * np.cos((hour % 24 - peak) / 24 * 2 * np.pi)
    weekday = np.where((hour // 24) % 7 >= 5, draw.uniform(0.3, 0.8), 1.0)
    level = np.exp(np.cumsum(draw.normal(0, drift, count // 24))).repeat(24)
    lasting = np.zeros(count)
    for at in range(1, count):
        lasting[at] = 0.5 * lasting[at - 1] + draw.normal(0, noise * np.sqrt(0.75))
    expected = requests_per_hour * day * weekday * level * np.exp(lasting)
    requests = draw.poisson(expected)
    # the sum of n lognormal costs of mean 1 and variation 1, normal for the many, exact in its mean
    spread = np.sqrt(np.maximum(requests, 1))
    return np.maximum(requests + spread * draw.normal(0, 1, count), 0.0) * 1e6
