"""Right-sizing hints: machines that are hardly busy, at which hours of the day, for how much, and
types of which fewer machines, or half of one, would carry the busiest hour."""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.ledger.machine_costs import MachineCost, costs_between, known_machines
from gateway.ledger.machine_report import machine_intervals
from gateway.ledger.money import short_usd, usd_text
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_LOW = 0.1
"""Busy for less than this share: a machine that could be off."""
_SHORTEST_H = 3
_LEAST_NANO_USD = 10_000_000
_FULL = 0.7
"""What a machine may be busy in its busiest hour: beyond, minutes in it would queue."""
_LEAST_RUN_H = 48
_HOUR_NS = 3_600_000_000_000


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


class Oversize(Struct, frozen=True, kw_only=True):
    """Machines of one type that are more than their busiest hour needs."""

    machine_type: str
    machines: list[str]
    needed: float
    """So many would do; 0.5: half of the only one."""
    peak: float
    """Their busiest hour, in machines."""
    days: int
    saved_usd: str
    """What the others cost over the days."""
    text: str


async def hint_texts(engine: "AsyncEngine", settings: Settings, *, days: int, tz: str) -> list[str]:
    """What `find_hints` finds until now, in words."""
    async with engine.connect() as connection:
        found = await find_hints(connection, settings, days=days, tz=tz, now=datetime.now(UTC))
    return [hint.text for hint in found]


async def find_hints(
    connection: "AsyncConnection", settings: Settings, *, days: int, tz: str, now: datetime
) -> list[Hint | Oversize]:
    """Types of which there are too many; then every machine's longest quiet stretch of the day. Of
    both the dearest first.

    Raises:
        SQLAlchemyError: the database does not answer.
    """
    zone = ZoneInfo(tz)
    end = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    begin = end - timedelta(days=days)
    edges = [round((begin + timedelta(hours=h)).timestamp() * 1e6) for h in range(days * 24 + 1)]
    measured = await machine_intervals(connection, edges[0], edges[-1])
    found = []
    by_type: dict[str, dict[str, list[MachineCost]]] = defaultdict(dict)
    for machine in await known_machines(connection, settings):
        name = machine.machine.name
        hours = costs_between(machine, measured.get(name, ()), edges)
        by_type[machine.machine.type][name] = hours
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
    idle_hints = [hint for idle_cost, hint in found if idle_cost >= _LEAST_NANO_USD]
    sized = [_oversize(type_, its, days) for type_, its in by_type.items()]
    return [*(one for one in sized if one is not None), *idle_hints]


def _oversize(
    machine_type: str, machines: dict[str, list[MachineCost]], days: int
) -> Oversize | None:
    """None: its busiest hour needs them all, or they ran too little to tell."""
    ran = {name: hours for name, hours in machines.items() if any(hour.run_ns for hour in hours)}
    hours = [
        (sum(one.run_ns for one in each), sum(one.ns_by_category["idle"] for one in each))
        for each in zip(*ran.values(), strict=True)
    ]
    if sum(run > 0 for run, _ in hours) < _LEAST_RUN_H:
        return None
    peak = max(run - idle for run, idle in hours) / _HOUR_NS
    count = len(ran)
    half = count == 1 and peak <= _FULL / 2
    needed = 0.5 if half else max(math.ceil(peak / _FULL), 1)
    cost = sum(hour.cost for hours_ in ran.values() for hour in hours_)
    saved = round(cost * (count - needed) / count)
    if needed >= count or saved < _LEAST_NANO_USD:
        return None
    usd = usd_text(saved)
    if half:
        what = f"{next(iter(ran))} was never busier than {peak:.0%} in an hour of {days} days"
        enough = "a machine half as fast would do"
    else:
        what = (
            f"The {count} machines of type {machine_type} together never did more than the work "
            f"of {peak:.1f} in an hour of {days} days"
        )
        enough = f"{needed} would do"
    return Oversize(
        machine_type=machine_type,
        machines=list(ran),
        needed=needed,
        peak=round(peak, 3),
        days=days,
        saved_usd=usd,
        text=f"{what}: {enough}, at ${short_usd(usd)} less. `headgate plan` says how fast it would "
        "answer.",
    )


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
    return Hint(
        machine=machine,
        since=since,
        until=until,
        busy=busy,
        days=days,
        idle_usd=usd_text(unused),
        text=f"{machine} was {busy:.0%} busy {when}: ${short_usd(usd_text(unused))} of idle time "
        f"in {days} days.",
    )
