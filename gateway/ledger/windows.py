"""The windows in which budgets count: calendar minutes to months of UTC, or for ever."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, get_args

Window = Literal["minute", "hour", "day", "month", "total"]
WINDOWS: tuple[Window, ...] = get_args(Window)


def window_start_us(window: str, now: float) -> int:
    """Unix microseconds at which the window that holds `now` (unix seconds) began; total: 0."""
    return 0 if window == "total" else _start_us(window, int(now // 60))


@lru_cache(maxsize=256)
def _start_us(window: str, minute: int) -> int:
    """All windows begin with a minute, so the answer is the same for all of it."""
    moment = datetime.fromtimestamp(minute * 60, UTC)
    if window in ("hour", "day", "month"):
        moment = moment.replace(minute=0)
    if window in ("day", "month"):
        moment = moment.replace(hour=0)
    if window == "month":
        moment = moment.replace(day=1)
    return int(moment.timestamp()) * 1_000_000
