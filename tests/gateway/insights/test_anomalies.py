"""Anomalies: doublings are seen, the week's own rhythm is not."""

import numpy as np

from gateway.insights.anomalies import MIN_HOURS, WINDOW_H, find
from gateway.insights.season import WEEK_H
from tests.gateway.insights.simulated import team_hours

BEGIN = 6 * WEEK_H


def test_doubled_spending_is_found_within_three_hours() -> None:
    """At a busy hour of every one of ten teams."""
    for seed in range(10):
        hours = team_hours(seed, weeks=7, noise=0.1)
        at = BEGIN + 24 + 12
        hours[at:] *= 2
        alarms = [find(hours[: at + seen], 0) for seen in (1, 2, 3)]
        assert any(alarm is not None and alarm.score > 0 for alarm in alarms), seed


def test_doubling_is_found_in_noise_and_at_night() -> None:
    """Of twenty noisier teams at any hour, at least sixteen (nine in ten, of many)."""
    found = 0
    for seed in range(20):
        hours = team_hours(seed, weeks=7, noise=0.15, requests_per_hour=1000.0)
        at = BEGIN + 7 * seed
        hours[at:] *= 2
        alarms = [find(hours[: at + seen], 0) for seen in (1, 2, 3)]
        found += any(alarm is not None and alarm.score > 0 for alarm in alarms)
    assert found >= 16


def test_quiet_weeks_are_left_in_peace() -> None:
    """Two teams' whole week without an event raises at most one alarm."""
    alarms = 0
    for seed in (100, 101):
        hours = team_hours(seed, weeks=7, noise=0.1)
        before = False
        for now in range(BEGIN, 7 * WEEK_H):
            strange = find(hours[:now], 0) is not None
            alarms += strange and not before
            before = strange
    assert alarms <= 1


def test_silence_is_an_anomaly_too() -> None:
    """A busy team that stops at noon."""
    hours = team_hours(5, weeks=7, noise=0.1)
    hours[BEGIN + 12 :] = 0.0
    found = find(hours[: BEGIN + 15], 0)
    assert found is not None
    assert found.score < 0
    assert found.actual == 0.0


def test_new_level_becomes_usual_after_some_days() -> None:
    """Whoever doubled for good is not called every hour for ever."""
    hours = team_hours(7, weeks=9, noise=0.1)
    hours[BEGIN:] *= 2
    calls = [find(hours[:now], 0) is not None for now in range(BEGIN + 10 * 24, BEGIN + 11 * 24)]
    assert not any(calls)


def test_more_series_need_stronger_evidence() -> None:
    """The same jump is told among few and not among very many."""
    hours = team_hours(11, weeks=7, noise=0.1)
    jumps = [1.0 + 0.1 * step for step in range(30)]
    least = {many: min(jump for jump in jumps if _found(hours, jump, many)) for many in (1, 10**5)}
    assert 1.1 < least[1] < least[10**5] < 3.0


def _found(hours: "np.ndarray[tuple[int], np.dtype[np.float64]]", times: float, many: int) -> bool:
    jumped = hours.copy()
    jumped[BEGIN + 12 :] *= times
    return find(jumped[: BEGIN + 15], 0, series=many) is not None


def test_young_and_silent_series_have_no_band() -> None:
    """Neither too little history nor nothing at all is an alarm."""
    assert find(np.ones(MIN_HOURS + WINDOW_H - 1), 0) is None
    assert find(np.zeros(4 * WEEK_H), 0) is None
