"""What an hour of a machine costs, at any moment."""

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.ledger.machine_prices import PricedMachine, changes_us, priced, usd_per_hour
from gateway.settings.prices import (
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
SMALL_HOURS = MachineSettings(
    name="d",
    usd_per_hour=Decimal(4),
    hours=[
        HourPriceSettings(from_="02:20", to="02:50", tz="Europe/Berlin", usd_per_hour=Decimal(2)),
        HourPriceSettings(from_="02:30", to="03:30", tz="Europe/Berlin", usd_per_hour=Decimal(1)),
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


@given(
    st.integers(0, 14 * 24 * 60),
    st.sampled_from([NIGHTS, SPOT, SMALL_HOURS]),
    st.sampled_from(["2026-03-25T00:00", "2026-10-20T00:00"]),
)
@example(25 * 60 + 15, SMALL_HOURS, "2026-10-24T00:00")
@example(25 * 60 + 1, SMALL_HOURS, "2026-03-28T00:00")
def test_price_changes_only_at_the_moments_named(
    minute: int, machine: MachineSettings, first: str
) -> None:
    """Between two of them the price is the same, also in the hour that comes twice in autumn and
    beside the one that never comes in spring."""
    begin = _at(first)
    changes = changes_us(machine, round(begin * 1e6), round((begin + 14 * 86_400) * 1e6))
    at = begin + minute * 60
    last = max((c / 1e6 for c in changes if c / 1e6 <= at), default=begin)
    assert usd_per_hour(machine, at) == usd_per_hour(machine, last)


def test_changed_price_leaves_the_past_as_it_was_but_for_dated_ones() -> None:
    """4 an hour until noon, 6 since; a spot price that was written down late holds from its date.
    Machines that nobody configures any more keep what they did cost."""
    noon, day = _at("2026-11-20T12:00"), 86_400

    def history(now: MachineSettings) -> PricedMachine:
        before = MachineSettings(name="m", usd_per_hour=Decimal(4))
        (found,) = priced([now], {"m": [(0, before), (round(noon * 1e6), now)]})
        return found

    plain = history(MachineSettings(name="m", usd_per_hour=Decimal(6)))
    assert [int(plain.usd_per_hour(noon + s)) for s in (-day, -1, 0, day)] == [4, 4, 6, 6]
    assert plain.changes_us(0, 2**62) == [round(noon * 1e6)]
    since = datetime(2026, 11, 20, 6, tzinfo=UTC)
    late = SpotPriceSettings(since=since, usd_per_hour=Decimal(1))
    dated = history(MachineSettings(name="m", usd_per_hour=Decimal(6), spot=[late]))
    assert [int(dated.usd_per_hour(noon + s)) for s in (-day, -1, 0, day)] == [4, 1, 1, 1]
    gone = MachineSettings(name="gone", usd_per_hour=Decimal(9))
    assert {m.machine.name: m.usd_per_hour(noon) for m in priced([], {"gone": [(0, gone)]})} == {
        "gone": Decimal(9)
    }
