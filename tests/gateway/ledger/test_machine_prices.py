"""What an hour of a machine costs, at any moment."""

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger.machine_prices import changes_us, usd_per_hour
from gateway.price_settings import (
    HourPriceSettings,
    MachineSettings,
    OwnedSettings,
    SpotPriceSettings,
)


def _at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NIGHTS = MachineSettings(
    name="m",
    usd_per_hour=Decimal(4),
    hours=[
        HourPriceSettings(from_="00:00", to="00:00", days=["sun"], usd_per_hour=Decimal(1)),
        HourPriceSettings(from_="22:00", to="06:00", tz="Europe/Berlin", usd_per_hour=Decimal(2)),
    ],
)
SPOT = MachineSettings(
    name="s",
    usd_per_hour=Decimal(9),
    spot=[
        SpotPriceSettings(since=datetime(2026, 11, 1, tzinfo=UTC), usd_per_hour=Decimal(3)),
        SpotPriceSettings(since=datetime(2026, 11, 2, 12, tzinfo=UTC), usd_per_hour=Decimal(5)),
    ],
)


def test_time_of_day_decides_in_the_table_s_own_zone() -> None:
    """22:00 in Berlin is 21:00 UTC in winter; windows pass midnight; the first counts."""
    expected = {
        "2026-11-20T20:59": 4,
        "2026-11-20T21:00": 2,
        "2026-11-21T04:59": 2,
        "2026-11-21T05:00": 4,
        "2026-11-22T04:59": 1,
        "2026-11-22T12:00": 1,
        "2026-11-23T00:00": 2,
    }
    assert {t: int(usd_per_hour(NIGHTS, _at(t))) for t in expected} == expected


def test_window_that_passes_midnight_belongs_to_the_day_it_began() -> None:
    """A Friday night's price holds on Saturday morning, not on Friday morning."""
    friday = HourPriceSettings(from_="22:00", to="06:00", days=["fri"], usd_per_hour=Decimal(2))
    machine = MachineSettings(name="m", usd_per_hour=Decimal(4), hours=[friday])
    assert usd_per_hour(machine, _at("2026-11-20T23:00")) == 2
    assert usd_per_hour(machine, _at("2026-11-21T05:00")) == 2
    assert usd_per_hour(machine, _at("2026-11-20T05:00")) == 4


def test_spot_price_is_the_newest() -> None:
    """Before the first one the plain price holds."""
    moments = ("2026-10-31T23:59", "2026-11-01T00:00", "2026-11-02T11:59", "2026-11-02T12:00")
    assert [int(usd_per_hour(SPOT, _at(t))) for t in moments] == [9, 3, 3, 5]


def test_owned_machine_costs_its_wear_its_power_and_its_place() -> None:
    """240,000 over 4 years, 10 kW at 1.3 and 12 cents, 876.60 a month for the place."""
    owned = OwnedSettings(
        purchase_usd=Decimal(240_000),
        residual_usd=Decimal(64_680),
        years=Decimal(4),
        kilowatts=Decimal(10),
        usd_per_kwh=Decimal("0.12"),
        pue=Decimal("1.3"),
        hosting_usd_per_month=Decimal("876.60"),
    )
    price = usd_per_hour(MachineSettings(name="m", owned=owned), 0.0)
    assert price == Decimal(5) + Decimal("1.56") + Decimal("1.2")


@given(st.integers(0, 14 * 24 * 60), st.sampled_from([NIGHTS, SPOT]))
def test_price_changes_only_at_the_moments_named(minute: int, machine: MachineSettings) -> None:
    """Between two of them the price is the same, also over a change of the clocks."""
    begin = _at("2026-10-20T00:00")
    changes = changes_us(machine, round(begin * 1e6), round((begin + 14 * 86_400) * 1e6))
    at = begin + minute * 60
    last = max((c / 1e6 for c in changes if c / 1e6 <= at), default=begin)
    assert usd_per_hour(machine, at) == usd_per_hour(machine, last)
