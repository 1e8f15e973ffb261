"""What a month will have cost at its end: by team, by model, or all of it."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.insights.forecast import Forecast, forecast_sum
from gateway.insights.season import WEEK_H
from gateway.insights.series import (
    HOUR_US,
    By,
    Series,
    first_hour_us,
    full_hour_us,
    hour_of_week,
    read_series,
)
from gateway.ledger.money import usd_text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from gateway.settings import Settings

_WEEKS = 13
"""Of history, at most: enough to tell a level that drifts from noise, too few to remember another
year's rhythm."""


class Outlook(Struct, frozen=True, kw_only=True):
    """One name's month."""

    name: str
    spent_nano_usd: int
    """In the month's full hours so far."""
    forecast: Forecast | None
    """None: too little history."""

    def shown(self) -> dict[str, Any]:
        """As JSON; amounts are decimal strings."""
        sums: dict[str, str | None] = dict.fromkeys(("expected_usd", "low_usd", "high_usd"))
        found = self.forecast
        if found is not None:
            sums = {name: usd_text(round(getattr(found, name[:-4]))) for name in sums}
        return {
            "name": self.name,
            "spent_usd": usd_text(self.spent_nano_usd),
            **sums,
            "coverage": found.coverage if found else None,
            "history_days": found.history_days if found else 0,
            "note": found.note if found else "less than two days of history: no forecast",
        }


async def month_outlook(
    connection: "AsyncConnection", *, by: By = "all", tz: str = "UTC", now: datetime | None = None
) -> list[Outlook]:
    """The running month of every name, the dearest first. Raises SQLAlchemyError."""
    now = now or datetime.now(UTC)
    begin, end = month_of(now, tz)
    return await outlook(connection, by, begin=begin, end=end, now=now)


async def month_end(engine: "AsyncEngine", _settings: "Settings", *, tz: str) -> Any:
    """All spending of the running month, as JSON; None: the ledger is empty."""
    async with engine.connect() as connection:
        found = await month_outlook(connection, tz=tz)
    return found[0].shown() if found else None


async def outlook(
    connection: "AsyncConnection", by: By, *, begin: datetime, end: datetime, now: datetime
) -> list[Outlook]:
    """What a period that is under way will have cost at its end, the dearest name first."""
    until_us = full_hour_us(now)
    first_us = await first_hour_us(connection)
    if first_us is None:
        return []
    begin_us = full_hour_us(begin)
    since_us = max(first_us, min(until_us - _WEEKS * WEEK_H * HOUR_US, begin_us))
    left = max(round(end.timestamp() * 1e6) - until_us, 0) // HOUR_US
    found = await read_series(connection, by, since_us=since_us, until_us=until_us)
    return [_outlook(one, since_us, begin_us, left) for one in found]


def _outlook(one: Series, since_us: int, begin_us: int, left: int) -> Outlook:
    spent = float(one.cost[max(begin_us - since_us, 0) // HOUR_US :].sum())
    active = one.cost.nonzero()[0]
    first = int(active[0]) if len(active) else len(one.cost)  # a young team was not poor before
    past = one.cost[max(first, len(one.cost) - _WEEKS * WEEK_H) :]
    begins = hour_of_week(since_us) + len(one.cost) - len(past)
    forecast = forecast_sum(past, begins, left=left, spent=spent)
    return Outlook(name=one.name, spent_nano_usd=round(spent), forecast=forecast)


def month_of(now: datetime, tz: str = "UTC") -> tuple[datetime, datetime]:
    """Begin and end of the month in which `now` lies."""
    local = now.astimezone(ZoneInfo(tz))
    begin = local.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return begin, (begin + timedelta(days=32)).replace(day=1)
