"""Anomalies found and invented, and intervals that hold, on simulated ledgers.

Teams have a daily wave, quiet weekends, a drifting level and hourly noise (see
tests/gateway/insights/simulated.py). A jump doubles a team's spending from a random hour on; it
counts as found if one of its first three hours raises an alarm upwards. False alarms are counted
over four weeks without any event, one per stretch of alarming hours.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gateway.insights.anomalies import find
from gateway.insights.forecast import forecast_sum
from gateway.insights.season import WEEK_H
from tests.benchmarks.environment import describe, write
from tests.gateway.insights.simulated import team_hours

WEEKS = 6
MONTH_H = 30 * 24
DAYS = (3, 8, 15, 22, 27)
"""Of the month, on which the forecast is made."""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teams", type=int, default=100, help="Of each kind.")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    workload = f"{asked.teams} simulated teams of each kind, {WEEKS} weeks of history"
    figures = {**describe(workload), **_measure(asked.teams)}
    print(figures)
    write(asked.out, figures)
    return 0


def _measure(teams: int) -> dict[str, Any]:
    return {
        "anomalies": [
            {"requests_per_hour": rate, "hourly_noise": noise, **_anomalies(teams, rate, noise)}
            for rate, noise in ((1000, 0.1), (1000, 0.15), (1000, 0.2), (200, 0.1))
        ],
        "forecasts": [
            {"daily_drift": drift, **_coverage(teams, drift)} for drift in (0.0, 0.02, 0.04)
        ],
    }


def _anomalies(teams: int, rate: float, noise: float) -> dict[str, float]:
    found = 0
    for seed in range(teams):
        hours = team_hours(seed, weeks=WEEKS + 1, requests_per_hour=rate, noise=noise)
        at = WEEKS * WEEK_H + int(np.random.default_rng(seed).integers(0, WEEK_H - 3))
        hours[at:] *= 2
        alarms = [find(hours[: at + seen], 0) for seen in (1, 2, 3)]
        found += any(alarm is not None and alarm.score > 0 for alarm in alarms)
    quiet = max(teams // 5, 1)
    alarms_count = sum(_false_alarms(1000 + seed, rate, noise) for seed in range(quiet))
    months = quiet * 4 * WEEK_H / MONTH_H
    return {
        "doublings_found_in_3_hours": round(found / teams, 3),
        "false_alarms_a_month": round(alarms_count / months, 2),
    }


def _false_alarms(seed: int, rate: float, noise: float) -> int:
    hours = team_hours(seed, weeks=WEEKS + 4, requests_per_hour=rate, noise=noise)
    alarms, before = 0, False
    for now in range(WEEKS * WEEK_H, len(hours)):
        strange = find(hours[:now], 0) is not None
        alarms += strange and not before
        before = strange
    return alarms


def _coverage(teams: int, drift: float) -> dict[str, Any]:
    held = dict.fromkeys(DAYS, 0)
    for seed in range(teams):
        hours = team_hours(seed, weeks=WEEKS + 5, drift=drift)
        begin = 4 * WEEK_H
        truth = float(hours[begin : begin + MONTH_H].sum())
        for day in DAYS:
            now = begin + day * 24
            spent = float(hours[begin:now].sum())
            found = forecast_sum(hours[:now], 0, left=begin + MONTH_H - now, spent=spent)
            assert found is not None, "there are weeks of history"
            held[day] += found.low <= truth <= found.high
    return {
        "interval": 0.9,
        "covered": round(sum(held.values()) / (teams * len(DAYS)), 3),
        "covered_on_day": {str(day): round(count / teams, 3) for day, count in held.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
