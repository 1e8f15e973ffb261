"""Forecasts: right on average, honest about how sure they are, silent without a past."""

import numpy as np
import pytest

from gateway.insights.forecast import MIN_HOURS, forecast_sum
from gateway.insights.season import WEEK_H, profile
from tests.gateway.insights.simulated import team_hours


def test_profile_knows_quiet_nights_and_weekends() -> None:
    """The mean is 1, the peak hour above and a weekend's night far below it."""
    hour = np.arange(6 * WEEK_H)
    busy = np.where((hour // 24) % 7 >= 5, 1.0, 4.0) * np.where(hour % 24 < 8, 0.5, 2.0)
    weekly = profile(busy, 0)
    assert weekly.mean() == pytest.approx(1.0)
    assert weekly[30] / weekly[24 * 6] == pytest.approx(4.0, rel=0.05)
    assert weekly[12] / weekly[3] == pytest.approx(4.0, rel=0.05)


def test_profile_is_placed_by_the_hour_of_the_week_it_is_told() -> None:
    """A series that begins on a Wednesday gives the same profile as one from Monday."""
    hours = team_hours(3, weeks=7)
    cut = 2 * 24
    np.testing.assert_allclose(
        profile(hours[cut:], cut), profile(hours[WEEK_H : 7 * WEEK_H], 0), rtol=0.25
    )


def test_forecast_of_a_steady_series_is_exact_and_narrow() -> None:
    """Nothing varies: the sum is known."""
    found = forecast_sum(np.full(4 * WEEK_H, 10.0), 0, left=100, spent=500.0)
    assert found is not None
    assert found.expected == pytest.approx(1500.0)
    assert found.high - found.low < 1.0
    assert found.note == ""


def test_forecast_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 40 teams, mid-month, the interval of 90 % holds at least 30 and is no wild guess."""
    month = 30 * 24
    held, widths = 0, []
    for seed in range(40):
        hours = team_hours(seed, weeks=9)
        begin, now = 4 * WEEK_H, 4 * WEEK_H + 12 * 24
        spent, truth = hours[begin:now].sum(), hours[begin : begin + month].sum()
        found = forecast_sum(hours[:now], 0, left=month - 12 * 24, spent=float(spent))
        assert found is not None
        held += found.low <= truth <= found.high
        widths.append((found.high - found.low) / truth)
    assert held >= 30
    assert float(np.median(widths)) < 0.3


def test_forecast_of_a_level_that_stays_is_narrow() -> None:
    """Where nothing drifts, the few unlikely drifts do not widen the interval: ten teams."""
    month, widths = 30 * 24, []
    for seed in range(10):
        hours = team_hours(seed, weeks=9, drift=0.0)
        begin, now = 4 * WEEK_H, 4 * WEEK_H + 12 * 24
        found = forecast_sum(hours[:now], 0, left=month - 12 * 24, spent=0.0)
        assert found is not None
        widths.append((found.high - found.low) / hours[begin : begin + month].sum())
    assert 0.02 < float(np.median(widths)) < 0.075


def test_forecast_knows_that_unseen_weekdays_may_differ() -> None:
    """Three equal days say nothing of a weekend: the interval leaves room for one."""
    days = 3 * 24
    found = forecast_sum(np.full(days, 10.0), 0, left=4 * 24, spent=0.0)
    later = forecast_sum(np.full(7 * 24, 10.0), 0, left=4 * 24, spent=0.0)
    assert found is not None
    assert later is not None
    assert found.high - found.low > 0.2 * found.expected > 10 * (later.high - later.low)


def test_forecast_never_falls_below_what_is_spent() -> None:
    """A wild series has a wide interval, but spent money does not come back."""
    wild = np.abs(np.random.default_rng(1).normal(0, 100, 5 * 24)) ** 3
    found = forecast_sum(wild, 0, left=24, spent=1000.0)
    assert found is not None
    assert found.low >= 1000.0
    assert "5 days of history" in found.note


def test_forecast_needs_two_days() -> None:
    """Less history gives no figure at all."""
    assert forecast_sum(np.ones(MIN_HOURS - 1), 0, left=10, spent=0.0) is None


def test_forecast_of_a_series_that_never_spent_is_zero() -> None:
    """No division by nothing."""
    found = forecast_sum(np.zeros(3 * WEEK_H), 0, left=50, spent=0.0)
    assert found is not None
    assert found.expected == found.low == 0.0
