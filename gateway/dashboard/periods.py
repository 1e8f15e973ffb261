"""Periods as readers name them, in their own time zone."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct

PRESETS: Mapping[str, str] = {
    "today": "Today",
    "24h": "Last 24 hours",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "month": "This month",
    "last-month": "Last month",
    "custom": "From … until …",
}
_HOURLY = timedelta(days=3)


class Period(Struct, frozen=True, kw_only=True):
    """A half-open period."""

    name: str
    """Of PRESETS."""
    since: str
    """As a report takes it: RFC 3339, or a date (its midnight in the reader's zone)."""
    until: str | None = None
    """None: now."""
    step: str
    """hour or day: what charts go by."""

    @property
    def moments(self) -> dict[str, Any]:
        """As parameters of a report."""
        return {"since": self.since} | ({} if self.until is None else {"until": self.until})


def period_of(
    asked: Mapping[str, str], tz: str, now: datetime, *, default: str = "month"
) -> Period:
    """The period that query parameters name: `period`, or `since` and `until`."""
    if asked.get("since"):
        since, until = asked["since"], asked.get("until") or None
        return Period(name="custom", since=since, until=until, step=_step(since, until, tz, now))
    name = asked.get("period", default)
    if name not in PRESETS or name == "custom":
        name = default
    day = now.astimezone(ZoneInfo(tz)).replace(hour=0, minute=0, second=0, microsecond=0)
    month = day.replace(day=1)
    hour = now.replace(minute=0, second=0, microsecond=0)
    begin = {
        "today": day,
        "24h": hour - timedelta(hours=23),
        "7d": day - timedelta(days=6),
        "30d": day - timedelta(days=29),
        "month": month,
        "last-month": (month - timedelta(days=1)).replace(day=1),
    }[name]
    until = month.isoformat() if name == "last-month" else None
    step = "hour" if name in ("today", "24h") else "day"
    return Period(name=name, since=begin.isoformat(), until=until, step=step)


def _step(since: str, until: str | None, tz: str, now: datetime) -> str:
    """Hours for short periods; what cannot be read the report will refuse in words."""
    try:
        begin, end = _moment(since, tz), _moment(until, tz) if until else now
    except ValueError:
        return "day"
    return "hour" if end - begin <= _HOURLY else "day"


def _moment(text: str, tz: str) -> datetime:
    found = datetime.fromisoformat(text.strip())
    return found if found.tzinfo else found.replace(tzinfo=ZoneInfo(tz))


def steps(period: Period, tz: str, now: datetime) -> list[tuple[float, str]]:
    """(unix seconds, as a report's `hour` or `day` says it) of every step of the period."""
    at = _moment(period.since, tz).astimezone(ZoneInfo(tz))
    end = _moment(period.until, tz) if period.until else now
    at = at.replace(minute=0, second=0, microsecond=0)
    if period.step == "day":
        at = at.replace(hour=0)
    found: list[tuple[float, str]] = []
    while at < end and len(found) < 1000:
        said = at.date().isoformat() if period.step == "day" else at.isoformat()
        found.append((at.timestamp(), said))
        at = _next(at, period.step)
    return found


def _next(at: datetime, step: str) -> datetime:
    if step == "day":
        return at + timedelta(days=1)  # the wall clock's: days of 23 and 25 hours count as one
    return (at.astimezone(UTC) + timedelta(hours=1)).astimezone(at.tzinfo)
