"""A machine's price at a moment, and the moments at which it may change.

Prices without a date (`usd_per_hour`, `hours`, `owned`) hold from the start at which they were
first seen until the start that saw others: what was charged meanwhile was charged by them. Those
with a date (`spot`) hold from it, also where they are written down late.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.ledger.money import EXACT
from gateway.settings.prices import HourPriceSettings, MachineSettings, OwnedSettings

_HOURS_PER_YEAR: Final = Decimal(8766)
"""365.25 days."""
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FINEST: Final = Decimal("1e-12")
_QUARTER_US: Final = 900_000_000
"""Clocks are put forward and back at one."""
_LONGEST_DAY_US: Final = 26 * 4 * _QUARTER_US


class PricedMachine(Struct, frozen=True, kw_only=True):
    """A machine of which is known what it did cost."""

    machine: MachineSettings
    """As it is now."""
    earlier: Sequence[tuple[int, MachineSettings]] = ()
    """Until when (unix microseconds, ascending) it was configured how."""

    def usd_per_hour(self, at: float) -> Decimal:
        """What an hour of it cost at `at`, Unix seconds."""
        dated = _spot(self.machine, at)
        if dated is not None:
            return dated
        for until_us, was in self.earlier:
            if at * 1e6 < until_us:
                return usd_per_hour(was, at)
        return usd_per_hour(self.machine, at)

    def changes_us(self, since_us: int, until_us: int) -> list[int]:
        """Moments inside the period at which that may change, unix microseconds, ascending."""
        found = {at for at, _ in self.earlier if since_us < at < until_us}
        for machine in (self.machine, *(was for _, was in self.earlier)):
            found.update(changes_us(machine, since_us, until_us))
        return sorted(found)


def priced(
    configured: Iterable[MachineSettings],
    recorded: Mapping[str, Sequence[tuple[int, MachineSettings]]],
) -> list[PricedMachine]:
    """All machines that are configured or were.

    Args:
        recorded: by machine, since when (unix microseconds, ascending) it is configured how.
    """
    found = {machine.name: PricedMachine(machine=machine) for machine in configured}
    for name, seen in recorded.items():
        ends = [since_us for since_us, _ in seen[1:]]
        earlier = [(end, was) for end, (_, was) in zip(ends, seen, strict=False)]
        found[name] = PricedMachine(machine=seen[-1][1], earlier=earlier)
    return list(found.values())


def usd_per_hour(machine: MachineSettings, at: float) -> Decimal:
    """What an hour of the machine costs at `at`, Unix seconds, as it is configured."""
    dated = _spot(machine, at)
    if dated is not None:
        return dated
    for price in machine.hours:
        if _holds(price, at):
            return price.usd_per_hour
    return machine.usd_per_hour if machine.owned is None else _owned(machine.owned)


def _spot(machine: MachineSettings, at: float) -> Decimal | None:
    place = bisect_right([price.since.timestamp() for price in machine.spot], at)
    return machine.spot[place - 1].usd_per_hour if place else None


def changes_us(machine: MachineSettings, since_us: int, until_us: int) -> list[int]:
    """Moments inside the period at which the price may change, unix microseconds, ascending."""
    found = {_us(spot.since) for spot in machine.spot}
    for price in machine.hours:
        zone = ZoneInfo(price.tz)
        day = datetime.fromtimestamp(since_us / 1e6, zone).date()
        last = datetime.fromtimestamp(until_us / 1e6, zone).date()
        while day <= last:
            for text in (price.from_, price.to, "00:00"):
                local = datetime.combine(day, time.fromisoformat(text), zone)
                found |= {_us(local), _us(local.replace(fold=1))}  # an hour may come twice
            begin = datetime.combine(day, time(), zone)
            day += timedelta(days=1)
            if datetime.combine(day, time(), zone).utcoffset() != begin.utcoffset():
                found.update(range(_us(begin), _us(begin) + _LONGEST_DAY_US, _QUARTER_US))
    return sorted(at for at in found if since_us < at < until_us)


def _us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def _holds(price: HourPriceSettings, at: float) -> bool:
    local = datetime.fromtimestamp(at, _zone(price.tz))
    now, day = f"{local:%H:%M}", local.weekday()
    if price.from_ < price.to:
        within = price.from_ <= now < price.to
    else:
        within = now >= price.from_ or now < price.to
        if now < price.to:
            day -= 1  # it began yesterday
    return within and (price.days is None or _DAYS[day] in price.days)


@lru_cache(maxsize=64)
def _owned(owned: OwnedSettings) -> Decimal:
    """Straight-line depreciation, power and hosting, per hour."""
    with_time = EXACT.divide(owned.purchase_usd - owned.residual_usd, owned.years * _HOURS_PER_YEAR)
    power = EXACT.multiply(owned.kilowatts * owned.pue, owned.usd_per_kwh)
    hosting = EXACT.divide(owned.hosting_usd_per_month * 12, _HOURS_PER_YEAR)
    return (with_time + power + hosting).quantize(_FINEST, ROUND_HALF_EVEN, EXACT)


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
