"""The windows in which budgets count: calendar minutes to months of UTC, or for ever."""

from datetime import UTC, datetime
from typing import Literal, get_args

Window = Literal["minute", "hour", "day", "month", "total"]
WINDOWS: tuple[Window, ...] = get_args(Window)


def window_start_us(window: str, now: float) -> int:
    """Unix microseconds at which the window that holds `now` (unix seconds) began; total: 0."""
    if window == "total":
        return 0
    moment = datetime.fromtimestamp(now, UTC).replace(second=0, microsecond=0)
    if window in ("hour", "day", "month"):
        moment = moment.replace(minute=0)
    if window in ("day", "month"):
        moment = moment.replace(hour=0)
    if window == "month":
        moment = moment.replace(day=1)
    return int(moment.timestamp()) * 1_000_000
