"""Right-sizing hints: machines that are hardly busy, at which hours of the day, for how much."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.ledger.machine_costs import costs_between, known_machines
from gateway.ledger.machine_report import machine_intervals
from gateway.ledger.money import usd_text
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_LOW = 0.1
"""Busy for less than this share: a machine that could be off."""
_SHORTEST_H = 3
_LEAST_NANO_USD = 10_000_000


class Hint(Struct, frozen=True, kw_only=True):
    """Hours of the day at which a machine hardly works."""

    machine: str
    since: str
    """HH:MM of the day, local."""
    until: str
    busy: float
    """Share of the time that it ran in these hours."""
    days: int
    idle_usd: str
    """What its idle time in these hours cost over the days."""
    text: str


async def hint_texts(engine: "AsyncEngine", settings: Settings, *, days: int, tz: str) -> list[str]:
    """What `idle_hints` finds until now, in words."""
    async with engine.connect() as connection:
        found = await idle_hints(connection, settings, days=days, tz=tz, now=datetime.now(UTC))
    return [hint.text for hint in found]


async def idle_hints(
    connection: "AsyncConnection", settings: Settings, *, days: int, tz: str, now: datetime
) -> list[Hint]:
    """The longest such stretch of every machine, the dearest first. Raises SQLAlchemyError."""
    zone = ZoneInfo(tz)
    end = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    begin = end - timedelta(days=days)
    edges = [round((begin + timedelta(hours=h)).timestamp() * 1e6) for h in range(days * 24 + 1)]
    measured = await machine_intervals(connection, edges[0], edges[-1])
    found = []
    for machine in await known_machines(connection, settings):
        name = machine.machine.name
        hours = costs_between(machine, measured.get(name, ()), edges)
        run, idle = [0] * 24, [0] * 24
        for at_us, hour in zip(edges, hours, strict=False):
            place = datetime.fromtimestamp(at_us / 1e6, zone).hour
            run[place] += hour.cost
            idle[place] += hour.by_category["idle"]
        stretch = _quietest(run, idle)
        if stretch is not None:
            hint = _hint(name, stretch, run, idle, days)
            found.append((sum(idle[h] for h in stretch), hint))
    found.sort(key=lambda one: -one[0])
    return [hint for idle_cost, hint in found if idle_cost >= _LEAST_NANO_USD]


def _quietest(run: Sequence[int], idle: Sequence[int]) -> list[int] | None:
    """The longest run of quiet hours, around midnight too; None: none is long enough."""
    quiet = [run[h] > 0 and idle[h] >= (1 - _LOW) * run[h] for h in range(24)]
    if all(quiet):
        return list(range(24))
    best: list[int] = []
    for first in range(24):
        stretch: list[int] = []
        while quiet[(first + len(stretch)) % 24]:
            stretch.append((first + len(stretch)) % 24)
        best = max(best, stretch, key=len)
    return best if len(best) >= _SHORTEST_H else None


def _hint(
    machine: str, stretch: Sequence[int], run: Sequence[int], idle: Sequence[int], days: int
) -> Hint:
    cost, unused = sum(run[h] for h in stretch), sum(idle[h] for h in stretch)
    busy = 1 - unused / cost
    since, until = f"{stretch[0]:02d}:00", f"{(stretch[-1] + 1) % 24:02d}:00"
    when = "at all hours" if len(stretch) == 24 else f"between {since} and {until}"
    usd = usd_text(unused)
    return Hint(
        machine=machine,
        since=since,
        until=until,
        busy=busy,
        days=days,
        idle_usd=usd,
        text=f"{machine} was {busy:.0%} busy {when}: ${usd} of idle time in {days} days.",
    )
