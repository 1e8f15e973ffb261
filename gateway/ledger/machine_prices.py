"""A machine's price at a moment, and the moments at which it may change."""

from bisect import bisect_right
from datetime import UTC, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from gateway.ledger.money import EXACT
from gateway.price_settings import HourPriceSettings, MachineSettings, OwnedSettings

_HOURS_PER_YEAR: Final = Decimal(8766)
"""365.25 days."""
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FINEST: Final = Decimal("1e-12")


def usd_per_hour(machine: MachineSettings, at: float) -> Decimal:
    """What an hour of the machine costs at `at`, Unix seconds."""
    if machine.spot:
        starts = [price.since.timestamp() for price in machine.spot]
        place = bisect_right(starts, at)
        if place:
            return machine.spot[place - 1].usd_per_hour
    for price in machine.hours:
        if _holds(price, at):
            return price.usd_per_hour
    return machine.usd_per_hour if machine.owned is None else _owned(machine.owned)


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
                found.add(_us(local.astimezone(UTC)))
            day += timedelta(days=1)
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
