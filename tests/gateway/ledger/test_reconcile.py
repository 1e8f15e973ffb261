"""Hours in which machine time, idle time and charges do not add up are named."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.machine_time import MachineClock
from gateway.ledger.reconcile import reconcile_hours
from gateway.ledger.report_query import ReportError
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.tables import charges, machine_time
from gateway.settings import ReportSettings, Settings
from gateway.settings.prices import HourPriceSettings, MachineSettings
from tests.gateway.ledger.samples import charge, settlement

S = 10**9
HOUR = 3600
BEGIN = int(datetime(2026, 11, 20, 8, tzinfo=UTC).timestamp())
NOW = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
EIGHT, NINE, TEN = (f"2026-11-20T{hour:02}:00:00+00:00" for hour in (8, 9, 10))
SETTINGS = Settings(machines=[MachineSettings(name="box", usd_per_hour=Decimal("3.60"))])


async def _three_hours(engine: AsyncEngine) -> None:
    """A machine that runs from 08:00 to 11:00, and in each hour: 600 s of work by each of two
    engines, 60 s lost by one of them, the rest idle."""
    clock = MachineClock(engine)
    rows = []
    for hour in range(3):
        begin = BEGIN + hour * HOUR
        span = (begin * S, (begin + HOUR) * S)
        for backend in ("a", "b"):
            await clock.record("box", backend, "run", *span)
            busy = 660 if backend == "a" else 600
            await clock.record("box", backend, "busy", *span, busy * S)
            name = f"{backend}{hour}"
            one = charge(
                name, backend=backend, machine="box", at=begin + 1800.0, cost_nano_usd=600 * 10**6
            )
            rows.append(settlement(name, started_at=begin + 1700.0, charges=(one,)))
        await clock.record("box", "a", "lost", *span, 60 * S)
        await clock.record("box", "", "idle", *span, (HOUR - 1260) * S)
    await Repository(engine).write(rows)


async def _reconcile(engine: AsyncEngine, **asked: Any) -> dict[str, Any]:
    return await reconcile_hours(engine, SETTINGS, now=NOW, **asked)


async def test_hours_that_add_up_are_passed(engine: AsyncEngine) -> None:
    """To the last nano-dollar, with the engines' own word beside the charges."""
    await _three_hours(engine)
    found = await _reconcile(engine)
    assert found["ok"]
    assert found["bad_hours"] == []
    assert [row["hour"] for row in found["hours"]] == [EIGHT, NINE, TEN]
    row = found["hours"][1]
    assert (row["cost_usd"], row["charged_usd"], row["lost_work_usd"]) == ("3.6", "1.2", "0.06")
    assert row["unattributed_usd"] == "0"
    assert row["engines"] == [
        {"backend": "a", "measured_usd": "0.66", "charged_usd": "0.6"},
        {"backend": "b", "measured_usd": "0.6", "charged_usd": "0.6"},
    ]


async def test_deleted_charge_is_named_by_its_hour_and_engine(engine: AsyncEngine) -> None:
    """What was worked and not charged shows in its hour, and against which engine."""
    await _three_hours(engine)
    async with engine.begin() as connection:
        await connection.execute(delete(charges).where(charges.c.request_id == "b1"))
    found = await _reconcile(engine)
    assert not found["ok"]
    assert found["bad_hours"] == [NINE]
    row = found["hours"][1]
    assert row["unattributed_usd"] == "0.6"
    assert row["engines"][1] == {"backend": "b", "measured_usd": "0.6", "charged_usd": "0"}


@pytest.mark.parametrize("machine", ["box", None])
async def test_deleted_charge_is_named_however_small(
    engine: AsyncEngine, machine: str | None
) -> None:
    """Below any tolerance, and an upstream's too: the sums that were written with it know it."""
    await _three_hours(engine)
    at = BEGIN + HOUR + 60.0
    one = charge("x", backend="b", machine=machine, at=at, cost_nano_usd=3)
    await Repository(engine).write([settlement("x", started_at=at - 1.0, charges=(one,))])
    assert (await _reconcile(engine))["ok"]
    async with engine.begin() as connection:
        await connection.execute(delete(charges).where(charges.c.request_id == "x"))
    found = await _reconcile(engine)
    assert not found["ok"]
    assert found["bad_hours"] == [NINE]
    row = found["changed"][0]
    assert (row["hour"], row["backend"], row["machine"]) == (NINE, "b", machine)
    assert Decimal(row["summed_usd"]) - Decimal(row["charged_usd"]) == Decimal("0.000000003")


@pytest.mark.parametrize("kind", ["idle", "lost", "run"])
async def test_dropped_engine_report_is_named_by_its_hour(engine: AsyncEngine, kind: str) -> None:
    """No source is made up from the others: without one of them its hour does not add up."""
    await _three_hours(engine)
    c = machine_time.c
    gone = delete(machine_time).where(c.kind == kind, c.started_us == (BEGIN + HOUR) * 10**6)
    async with engine.begin() as connection:
        await connection.execute(gone)
    found = await _reconcile(engine)
    assert not found["ok"]
    assert found["bad_hours"] == [NINE]


async def test_tolerance_is_for_requests_that_cross_an_hour(engine: AsyncEngine) -> None:
    """A difference within it passes; the figure is printed all the same."""
    await _three_hours(engine)
    one = charge("x", machine="box", at=BEGIN + 5.0, cost_nano_usd=36 * 10**6)
    await Repository(engine).write([settlement("x", started_at=BEGIN + 1.0, charges=(one,))])
    found = await _reconcile(engine)
    assert found["ok"]
    assert found["hours"][0]["unattributed_usd"] == "-0.036"
    assert (await _reconcile(engine, tolerance=Decimal("0.009")))["bad_hours"] == [EIGHT]


async def test_charge_on_a_machine_that_never_ran_is_named(engine: AsyncEngine) -> None:
    """Charges without any machine time cannot be right."""
    one = charge("x", machine="box", at=BEGIN + 5.0, cost_nano_usd=5)
    await Repository(engine).write([settlement("x", started_at=BEGIN + 1.0, charges=(one,))])
    assert (await _reconcile(engine))["bad_hours"] == [EIGHT]


async def test_hour_that_has_not_ended_is_not_judged(engine: AsyncEngine) -> None:
    """Rows of the present hour are still on their way, unless it is asked for."""
    clock = MachineClock(engine)
    await clock.record("box", "a", "run", (BEGIN + 4 * HOUR) * S, (BEGIN + 4 * HOUR + 900) * S)
    assert (await _reconcile(engine))["hours"] == []
    asked = await _reconcile(engine, until=NOW.isoformat())
    assert asked["bad_hours"] == ["2026-11-20T12:00:00+00:00"]


async def test_charges_younger_than_the_measurements_are_no_difference(
    engine: AsyncEngine,
) -> None:
    """Just after the hour the machine's last seconds are still on their way; later they count."""
    await _three_hours(engine)
    end = BEGIN + 4 * HOUR
    clock = MachineClock(engine)
    for backend, kind in (("a", "run"), ("", "idle")):
        await clock.record("box", backend, kind, (BEGIN + 3 * HOUR) * S, (end - 20) * S)
    one = charge("x", machine="box", at=end - 5.0, cost_nano_usd=50 * 10**6)
    await Repository(engine).write([settlement("x", started_at=end - 19.0, charges=(one,))])

    async def at(seconds: int) -> dict[str, Any]:
        now = datetime.fromtimestamp(end + seconds, UTC)
        return await reconcile_hours(engine, SETTINGS, tolerance=Decimal(0), now=now)

    assert (await at(3))["bad_hours"] == []
    assert (await at(3))["hours"][3]["charged_usd"] == "0"
    late = await at(600)
    assert late["bad_hours"] == ["2026-11-20T11:00:00+00:00"]
    assert late["hours"][3]["unattributed_usd"] == "-0.05"


async def test_hours_are_those_of_the_time_zone(engine: AsyncEngine) -> None:
    """Also where they begin at half past."""
    await _three_hours(engine)
    found = await _reconcile(engine, tz="Asia/Kolkata", tolerance=Decimal(1))
    assert [row["hour"][11:16] for row in found["hours"]] == ["13:00", "14:00", "15:00", "16:00"]
    assert sum(Decimal(row["cost_usd"]) for row in found["hours"]) == Decimal("10.8")


async def test_nonsense_is_refused(engine: AsyncEngine) -> None:
    """A tolerance is a share."""
    with pytest.raises(ReportError, match="tolerance"):
        await _reconcile(engine, tolerance=Decimal(2))


async def test_each_hour_costs_what_it_cost_then(engine: AsyncEngine) -> None:
    """A price by time of day changes within a row of machine time; so does the baseline's."""
    cheap = HourPriceSettings(from_="09:30", to="10:00", usd_per_hour=Decimal("1.80"))
    machine = MachineSettings(name="box", usd_per_hour=Decimal("3.60"), hours=[cheap])
    settings = Settings(
        machines=[machine], reports=ReportSettings(baseline_machines={"box": Decimal(2)})
    )
    clock = MachineClock(engine)
    await clock.record("box", "a", "run", BEGIN * S, (BEGIN + 3 * HOUR) * S)
    await clock.record("box", "", "idle", BEGIN * S, (BEGIN + 3 * HOUR) * S, HOUR * S)
    asked: dict[str, Any] = {"since": "2026-11-20T08:00", "until": "2026-11-20T11:00", "now": NOW}
    found = await costs_report(engine, settings, **asked)
    assert Decimal(found["machine_cost_usd"]) == Decimal("9.9")
    assert Decimal(found["idle_cost_usd"]) == Decimal("3.3")
    assert found["machines"][0]["hours"] == "3.0000"
    assert Decimal(found["savings"]["baseline_cost_usd"]) == Decimal("19.8")
    assert Decimal(found["savings"]["really_saved_usd"]) == Decimal("9.9")
    early = await costs_report(engine, settings, **{**asked, "since": "2026-11-01"})
    assert early["savings"] == found["savings"], "before the ledger began nothing was saved"
