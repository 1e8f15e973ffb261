"""Anomalies of the ledger's teams, models and machines, each with the change that explains most.

What changed is said twice: which part of the series (a key, a model, a rule) brought the difference
against the same hours of the weeks before, and which factor, as cost = requests x tokens a request
x cost of a token.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from gateway.insights import anomalies
from gateway.insights.season import DAY_H, WEEK_H
from gateway.insights.series import (
    HOUR_US,
    By,
    Series,
    first_hour_us,
    full_hour_us,
    hour_of_week,
    read_series,
)
from gateway.ledger import subjects

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_WEEKS: Final = 8
_WATCHED: Final[tuple[By, ...]] = ("team", "model", "machine")
_PARTS: Final[dict[By, tuple[By, ...]]] = {
    "all": ("team", "model"),
    "team": ("key", "model", "rule"),
    "model": ("team", "rule"),
    "machine": ("backend", "team"),
}
_LEAST_SHARE: Final = 0.01
"""Of all spending: a series below it is nobody's anomaly."""


class Change(Struct, frozen=True, kw_only=True):
    """A series that left its band, and why."""

    by: By
    name: str
    since: datetime
    """Begin of the first strange hour."""
    hours: int
    actual_nano_usd: int
    expected_nano_usd: int
    score: float
    reason: str
    """In words, with figures."""

    @property
    def times(self) -> float:
        """Actual over expected."""
        return self.actual_nano_usd / max(self.expected_nano_usd, 1)


async def find_changes(connection: "AsyncConnection", now: datetime) -> list[Change]:
    """What is strange about the last full hour, the largest difference first."""
    until_us = full_hour_us(now)
    first_us = await first_hour_us(connection)
    if first_us is None:
        return []
    since_us = max(first_us, until_us - _WEEKS * WEEK_H * HOUR_US)
    if (until_us - since_us) // HOUR_US < anomalies.MIN_HOURS + anomalies.WINDOW_H:
        return []
    watched = [
        (by, one)
        for by in _WATCHED
        for one in await read_series(connection, by, since_us=since_us, until_us=until_us)
        if one.name
    ]
    total = sum(float(one.cost.sum()) for by, one in watched if by == "team")
    watched = [(by, one) for by, one in watched if one.cost.sum() >= _LEAST_SHARE * total > 0]
    found = []
    for by, one in watched:
        strange = anomalies.find(one.cost, hour_of_week(since_us), series=len(watched))
        if strange is not None:
            reason = await _reason(connection, by, one, strange, since_us, until_us)
            found.append(_change(by, one.name, strange, reason, until_us))
    return sorted(found, key=lambda one: -abs(one.actual_nano_usd - one.expected_nano_usd))


def _change(by: By, name: str, strange: anomalies.Anomaly, reason: str, until_us: int) -> Change:
    since_us = until_us - strange.hours * HOUR_US
    return Change(
        by=by,
        name=name,
        since=datetime.fromtimestamp(since_us / 1e6, UTC),
        hours=strange.hours,
        actual_nano_usd=round(strange.actual),
        expected_nano_usd=round(strange.expected),
        score=round(strange.score, 1),
        reason=reason,
    )


async def _reason(
    connection: "AsyncConnection",
    by: By,
    whole: Series,
    strange: anomalies.Anomaly,
    since_us: int,
    until_us: int,
) -> str:
    hours = strange.hours
    said = [_factors(whole, hours)]
    where: dict[str, str] = {}
    if by != "all":
        where[by] = await _stored_name(connection, by, whole.name)
    difference = _now(whole.cost, hours) - _before(whole.cost, hours)
    parts = [
        (part_by, one, _now(one.cost, hours) - _before(one.cost, hours))
        for part_by in _PARTS[by]
        for one in await read_series(
            connection, part_by, since_us=since_us, until_us=until_us, where=where
        )
    ]
    if parts and difference:
        part_by, one, change = max(parts, key=lambda part: part[2] / difference)
        share = change / difference
        if share > 0:
            said.append(f"{part_by} {one.name or '-'} explains {min(share, 1):.0%} of it")
    return "; ".join(said)


async def _stored_name(connection: "AsyncConnection", by: By, name: str) -> str:
    if by != "team":
        return name
    return (await subjects.find_ids(connection, [("team", name)])).get(("team", name), name)


def _factors(series: Series, hours: int) -> str:
    """Each factor against the same hours before; the largest change first."""
    now = [_now(figure, hours) for figure in (series.requests, series.tokens, series.cost)]
    before = [_before(figure, hours) for figure in (series.requests, series.tokens, series.cost)]
    if min(before) <= 0 or min(now) <= 0:
        return (
            "there was next to nothing in these hours before" if min(before) <= 0 else "it stopped"
        )
    factors = {
        "requests": now[0] / before[0],
        "tokens a request": (now[1] / now[0]) / (before[1] / before[0]),
        "cost of a token": (now[2] / now[1]) / (before[2] / before[1]),
    }
    ordered = sorted(factors.items(), key=lambda one: -abs(np.log(one[1])))
    return ", ".join(f"{name} {times:.1f}x" for name, times in ordered)


def _now(figure: "np.ndarray[tuple[int], np.dtype[np.float64]]", hours: int) -> float:
    return float(figure[-hours:].sum())


def _before(figure: "np.ndarray[tuple[int], np.dtype[np.float64]]", hours: int) -> float:
    """The median of the same hours in the weeks before; of the days before in a young ledger."""
    step = WEEK_H if len(figure) >= 2 * WEEK_H + hours else DAY_H
    ends = range(len(figure) - step, hours - 1, -step)
    return float(np.median([figure[end - hours : end].sum() for end in list(ends)[:4]]))
