"""Anomalies found and invented, and intervals that hold, on simulated ledgers.

Teams have a daily wave, quiet weekends, a drifting level and hourly noise (see
tests/gateway/insights/simulated.py). A jump doubles a team's spending from a random hour on; it
counts as found if one of its first three hours raises an alarm upwards. False alarms are counted
over four weeks without any event, one per stretch of alarming hours. Forecasts to a month's end are
made on five of its days, over levels that stay and levels that drift, with little history and with
all that a forecast looks at. Anomalies and forecasts see what they would in the gateway: the last
eight and thirteen weeks. Nothing is timed, so it need not run alone.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.evaluation.figures import wilson
from gateway.insights.anomalies import Anomaly, find
from gateway.insights.forecast import forecast_sum
from gateway.insights.season import WEEK_H
from tests.benchmarks.environment import describe, write
from tests.gateway.insights.simulated import team_hours

WEEKS = 6
HISTORIES = (6, 13)
"""Weeks before the month whose end is forecast."""
DRIFTS = (0.0, 0.005, 0.01, 0.02, 0.04)
SEEN_H = 8 * WEEK_H
FORECAST_SEEN_H = 13 * WEEK_H
MONTH_H = 30 * 24
DAYS = (3, 8, 15, 22, 27)
"""Of the month, on which the forecast is made."""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teams", type=int, default=100, help="Of each kind that jumps.")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    workload = f"{asked.teams} simulated teams of each kind, {WEEKS} weeks of history"
    figures = {**describe(workload), **_measure(asked.teams)}
    print(figures)
    write(asked.out, figures)
    return 0


def _measure(teams: int) -> dict[str, Any]:
    forecasts = [_coverage(5 * teams, drift, weeks) for weeks in HISTORIES for drift in DRIFTS]
    held = sum(one.pop("held") for one in forecasts)
    return {
        "anomalies": [
            {"requests_per_hour": rate, "hourly_noise": noise, **_anomalies(teams, rate, noise)}
            for rate, noise in ((1000, 0.1), (1000, 0.15), (1000, 0.2), (200, 0.1))
        ],
        "forecasts": forecasts,
        "forecasts_all": {"interval": 0.9, **_share(held, 5 * teams * len(DAYS) * len(forecasts))},
    }


def _anomalies(teams: int, rate: float, noise: float) -> dict[str, Any]:
    found = 0
    for seed in range(teams):
        hours = team_hours(seed, weeks=WEEKS + 1, requests_per_hour=rate, noise=noise)
        at = WEEKS * WEEK_H + int(np.random.default_rng(seed).integers(0, WEEK_H - 3))
        hours[at:] *= 2
        alarms = [_strange(hours, at + seen) for seen in (1, 2, 3)]
        found += any(alarm is not None and alarm.score > 0 for alarm in alarms)
    quiet = max(teams // 5, 1)
    alarms_count = sum(_false_alarms(1000 + seed, rate, noise) for seed in range(quiet))
    months = quiet * 4 * WEEK_H / MONTH_H
    return {
        "doublings_found_in_3_hours": _share(found, teams),
        "false_alarms_a_month": {
            "rate": round(alarms_count / months, 2),
            "high": round(_poisson_high(alarms_count) / months, 2),
            "months": round(months, 1),
        },
    }


def _strange(hours: NDArray[np.float64], now: int) -> Anomaly | None:
    begin = max(0, now - SEEN_H)
    return find(hours[begin:now], begin % WEEK_H)


def _false_alarms(seed: int, rate: float, noise: float) -> int:
    hours = team_hours(seed, weeks=WEEKS + 4, requests_per_hour=rate, noise=noise)
    alarms, before = 0, False
    for now in range(WEEKS * WEEK_H, len(hours)):
        strange = _strange(hours, now) is not None
        alarms += strange and not before
        before = strange
    return alarms


def _coverage(teams: int, drift: float, weeks: int) -> dict[str, Any]:
    held = dict.fromkeys(DAYS, 0)
    for seed in range(teams):
        hours = team_hours(seed, weeks=weeks + 5, drift=drift)
        begin = weeks * WEEK_H
        truth = float(hours[begin : begin + MONTH_H].sum())
        for day in DAYS:
            now = begin + day * 24
            spent = float(hours[begin:now].sum())
            first = max(0, now - FORECAST_SEEN_H)
            seen = hours[first:now]
            found = forecast_sum(seen, first % WEEK_H, left=begin + MONTH_H - now, spent=spent)
            assert found is not None, "there are weeks of history"
            held[day] += found.low <= truth <= found.high
    return {
        "weeks_of_history": weeks,
        "daily_drift": drift,
        "covered": _share(sum(held.values()), teams * len(DAYS)),
        "covered_on_day": {str(day): _share(count, teams) for day, count in held.items()},
        "held": sum(held.values()),
    }


def _share(count: int, of: int) -> dict[str, float]:
    rate = wilson(count, of)
    return {name: round(getattr(rate, name), 3) for name in ("rate", "low", "high")}


def _poisson_high(count: int) -> float:
    """Upper end of the 95 % interval of a Poisson mean (Byar's approximation)."""
    more = count + 1
    return more * (1 - 1 / (9 * more) + 1.96 / (3 * math.sqrt(more))) ** 3


if __name__ == "__main__":
    sys.exit(main())
