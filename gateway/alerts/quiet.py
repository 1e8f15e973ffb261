"""Quiet hours: what is not critical waits until they end."""

from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from gateway.alerts.settings import QuietSettings


def due_at(quiet: QuietSettings | None, severity: str, now: float) -> float:
    """Unix seconds at which a message may go out."""
    if quiet is None or severity == "critical":
        return now
    zone = ZoneInfo(quiet.tz)
    local = datetime.fromtimestamp(now, zone)
    since, until = time.fromisoformat(quiet.since), time.fromisoformat(quiet.until)
    for day in (local.date() - timedelta(days=1), local.date()):
        begin = datetime.combine(day, since, zone)
        last = day if until > since else day + timedelta(days=1)
        end = datetime.combine(last, until, zone)
        if begin <= local < end:
            return end.timestamp()
    return now
