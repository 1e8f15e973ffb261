"""The windows in which budgets count: calendar ones in a time zone, rolling ones, a lifetime.

A rolling window counts in 60 buckets of its length and forgets the oldest when a new one begins:
it covers its length and at most one bucket more, so no stretch of that length can pass the limit.
"""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

CALENDAR = ("minute", "hour", "day", "week", "month")
LIFETIME = "lifetime"
ALLOWED = f"{', '.join(CALENDAR)}, rolling-24h, rolling-7d (any h or d), {LIFETIME}"
_ALIASES = {"total": LIFETIME, "rolling": "rolling-30d"}
_ROLLING = re.compile(r"^rolling-([1-9]\d{0,2})(h|d)$")
_BUCKETS = 60
_HOUR_US = 3_600_000_000


def check_window(window: str) -> str:
    """The window's name as it is stored. Raises ValueError."""
    window = _ALIASES.get(window, window)
    if window in CALENDAR or window == LIFETIME or _ROLLING.match(window):
        return window
    raise ValueError(f"window {window!r}; allowed: {ALLOWED}")


def check_zone(tz: str) -> str:
    """The time zone's name. Raises ValueError."""
    _zone(tz)
    return tz


def window_start_us(window: str, now: float, tz: str = "UTC") -> int:
    """Unix microseconds at which the window (rolling: its newest bucket) of `now` began.

    Args:
        now: unix seconds.
        tz: IANA name; in which days, weeks and months begin.
    """
    return 0 if window == LIFETIME else _start_us(window, tz, int(now // 60))


def first_start_us(window: str, start_us: int) -> int:
    """Where the oldest bucket begins that counts together with the one at `start_us`."""
    bucket_us = bucket_us_of(window)
    return start_us if bucket_us is None else start_us - _BUCKETS * bucket_us


def rolls(window: str) -> bool:
    """Whether it counts in buckets."""
    return bucket_us_of(window) is not None


@lru_cache(maxsize=64)
def bucket_us_of(window: str) -> int | None:
    """How long a rolling window's buckets are; None: the window does not roll."""
    found = _ROLLING.match(window)
    if found is None:
        return None
    hours = int(found[1]) * (24 if found[2] == "d" else 1)
    return hours * _HOUR_US // _BUCKETS


@lru_cache(maxsize=256)
def _start_us(window: str, tz: str, minute: int) -> int:
    """All windows and buckets begin with a minute, so the answer is the same for all of it."""
    bucket_us = bucket_us_of(window)
    if bucket_us is not None:
        now_us = minute * 60_000_000
        return now_us - now_us % bucket_us
    moment = datetime.fromtimestamp(minute * 60, _zone(tz))
    if window != "minute":
        moment = moment.replace(minute=0)
    if window in ("day", "week", "month"):
        moment = moment.replace(hour=0, fold=0)
    if window == "week":
        moment -= timedelta(days=moment.weekday())
    if window == "month":
        moment = moment.replace(day=1)
    return int(moment.timestamp()) * 1_000_000


@lru_cache(maxsize=64)
def _zone(tz: str) -> tzinfo:
    if tz == "UTC":
        return UTC
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"time zone {tz!r}; allowed: an IANA name such as Europe/Berlin") from None
