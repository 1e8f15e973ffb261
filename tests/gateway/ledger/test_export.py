"""What other programs read: the same sums, nothing that runs as a formula, no float."""

import csv
import io
import json
import random
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import export, focus, month_end
from gateway.ledger.compare import compared_report
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.report_query import ReportError
from gateway.ledger.repository import Repository
from gateway.ledger.tables import charges
from gateway.settings import MachineSettings, Settings
from tests.gateway.ledger.samples import NOW, charge, settlement

SETTINGS = Settings(machines=[MachineSettings(name="local", usd_per_hour=Decimal("3.60"))])
EVERYTHING = {"since_us": 0, "until_us": 2**62}
HOSTILE = '=HYPERLINK("http://x","y")'
_NEVER_NULL = (
    *("BillingAccountId", "BillingCurrency", "BilledCost", "EffectiveCost", "ListCost"),
    *("ContractedCost", "ChargeCategory", "ChargeDescription", "ChargeFrequency", "ProviderName"),
    *("PublisherName", "InvoiceIssuerName", "ServiceCategory", "ServiceName"),
)


async def _some(engine: AsyncEngine) -> None:
    upstream = {"backend": "outside", "machine": None, "machine_type": None}
    rows = [
        settlement("a", team=HOSTILE, tags={"note": "@SUM(A1)", "big": "x" * 10_000}),
        settlement("b", charges=(charge("b", cost_nano_usd=3), charge("b", 1, **upstream))),
        settlement("c", charges=(charge("c", cost_nano_usd=-7, kind="reversal", reverses_seq=0),)),
    ]
    await Repository(engine).write(rows)
    began = round(NOW * 1e6) * 1000
    clock = MachineClock(engine)
    await clock.record("local", "small", "run", began, began + 10**10)
    await clock.record("local", "", "idle", began, began + 4 * 10**9)
    await clock.record("local", "small", "loading", began, began + 2 * 10**9)
    await clock.aclose()


async def test_csv_and_parquet_have_every_charge_exactly(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    """Both hold the same rows; amounts are decimal strings or decimals, formulas are text."""
    await _some(engine)
    text = io.StringIO()
    async with engine.connect() as connection:
        assert await export.charges_csv(connection, text, **EVERYTHING) == 4
        file = tmp_path / "x.parquet"
        assert await export.charges_parquet(connection, file, **EVERYTHING) == 4
        assert await export.charges_csv(connection, io.StringIO(), since_us=0, until_us=5) == 0
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert list(rows[0]) == list(export.COLUMNS)
    assert [row["cost_usd"] for row in rows] == [
        "0.000001",
        "0.000000003",
        "0.000001",
        "-0.000000007",
    ]
    assert rows[0]["team"] == f"'{HOSTILE}"
    assert rows[0]["at"] == "2026-11-21T12:00:00.250000Z"
    table = parquet.read_table(file)
    assert str(table.schema.field("cost_usd").type) == "decimal128(38, 9)"
    found = table.to_pylist()
    assert [row["cost_usd"] for row in found] == [Decimal(row["cost_usd"]) for row in rows]
    assert [row["team"] for row in found][:2] == [HOSTILE, "search"]


async def test_focus_sums_to_the_bill(engine: AsyncEngine) -> None:
    """Usage by day, idle and unattributed time, discount and difference: BilledCost is the bill."""
    await _some(engine)
    await month_end.reconcile_invoice(
        engine,
        SETTINGS,
        "2026-11",
        invoice_nano_usd=10**9,
        discount_nano_usd=10**8,
        now=NOW + 864_000,
    )
    text = io.StringIO()
    count = await focus.focus_csv(engine, SETTINGS, text, "2026-11")
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert len(rows) == count
    assert sum(Decimal(row["BilledCost"]) for row in rows) == 1
    kinds = {row["ChargeCategory"] for row in rows}
    assert kinds == {"Usage", "Credit", "Adjustment"}
    assert {row["SubAccountId"] for row in rows} == {"", f"'{HOSTILE}", "search"}
    for row in rows:
        assert row["BillingCurrency"] == "USD"
        assert row["BillingPeriodStart"] == "2026-11-01T00:00:00Z"
        assert row["BillingPeriodEnd"] == "2026-12-01T00:00:00Z"
        assert row["ChargePeriodStart"] < row["ChargePeriodEnd"]
    machines = [row for row in rows if row["SkuId"] in ("idle", "loading")]
    assert {(row["SkuId"], row["ConsumedQuantity"], row["ConsumedUnit"]) for row in machines} == {
        ("idle", "0.0011", "Hours"),
        ("loading", "0.0005", "Hours"),
    }


async def test_focus_calls_corrections_what_belongs_to_an_earlier_month(
    engine: AsyncEngine,
) -> None:
    """A charge of October taken back and booked anew in November, and one of the same month."""
    october = NOW - 30 * 86_400
    anew = (
        charge("old", at=october, cost_nano_usd=900),
        charge("old", 1000, at=NOW, kind="reversal", cost_nano_usd=-900, reverses_seq=0),
        charge("old", 1001, at=NOW, cost_nano_usd=700, reverses_seq=0),
    )
    young = (
        charge("young", at=NOW, cost_nano_usd=50),
        charge("young", 1000, at=NOW, kind="reversal", cost_nano_usd=-50, reverses_seq=0),
    )
    rows = [settlement("old", started_at=october, charges=anew), settlement("young", charges=young)]
    await Repository(engine).write(rows)
    text = io.StringIO()
    await focus.focus_csv(engine, SETTINGS, text, "2026-11")
    found = [
        (row["ChargeClass"], row["BilledCost"])
        for row in csv.DictReader(io.StringIO(text.getvalue()))
        if row["ServiceName"] == "LLM inference"
    ]
    assert sorted(found) == [
        ("", "-0.00000005"),
        ("", "0.00000005"),
        ("Correction", "-0.0000009"),
        ("Correction", "0.0000007"),
    ]


async def test_focus_lines_keep_to_the_specification(engine: AsyncEngine) -> None:
    """What FOCUS 1.0 says must be and must not be null, on every kind of line there is."""
    await _some(engine)
    await Repository(engine).write([settlement("denied", charges=(), backend=None)])
    asked: dict[str, Any] = {"invoice_nano_usd": 10**9, "discount_nano_usd": 10**8}
    await month_end.reconcile_invoice(engine, SETTINGS, "2026-11", now=NOW + 864_000, **asked)
    text = io.StringIO()
    await focus.focus_csv(engine, SETTINGS, text, "2026-11")
    for row in csv.DictReader(io.StringIO(text.getvalue())):
        for name in _NEVER_NULL:
            assert row[name], (name, row)
        is_usage = row["ChargeCategory"] == "Usage"
        for name in ("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit"):
            assert bool(row[name]) == is_usage, (name, row)
        assert bool(row["PricingCategory"]) or not is_usage
        assert bool(row["ResourceType"]) == bool(row["ResourceId"])
        assert all(name.startswith("headgate/") for name in json.loads(row["Tags"] or "{}"))


async def test_sums_of_exports_are_the_ledger_s_to_the_nano_dollar(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    """CSV, Parquet and FOCUS's usage, over several days, kinds and machines."""
    draw = random.Random(5)
    upstream = {"backend": "outside", "machine": None, "machine_type": None}
    rows = []
    for n in range(300):
        name, at = f"r{n}", NOW - draw.randrange(20 * 86_400)
        first = charge(name, at=at, cost_nano_usd=draw.randrange(10**12), kind="rung")
        other = charge(name, 1, at=at + 1, cost_nano_usd=draw.randrange(10**6), **upstream)
        taken = charge(
            name, 2, at=at, kind="reversal", cost_nano_usd=-first.cost_nano_usd, reverses_seq=0
        )
        booked = (first, other, taken)[: draw.randrange(4)]
        rows.append(settlement(name, team=f"t{n % 3}", started_at=at, charges=booked))
    await Repository(engine).write(rows)
    async with engine.connect() as connection:
        total = (await connection.execute(select(func.sum(charges.c.cost_nano_usd)))).scalar_one()
        text, by_day, file = io.StringIO(), io.StringIO(), tmp_path / "x.parquet"
        await export.charges_csv(connection, text, **EVERYTHING)
        await export.charges_parquet(connection, file, **EVERYTHING)
    await focus.focus_csv(engine, SETTINGS, by_day, "2026-11")
    in_csv = [row["cost_usd"] for row in csv.DictReader(io.StringIO(text.getvalue()))]
    in_focus = csv.DictReader(io.StringIO(by_day.getvalue()))
    assert sum(map(Decimal, in_csv)) * 10**9 == total
    assert sum(parquet.read_table(file)["cost_usd"].to_pylist()) * 10**9 == total
    usage = [row["BilledCost"] for row in in_focus if row["ServiceName"] == "LLM inference"]
    assert sum(map(Decimal, usage)) * 10**9 == total


BERLIN = "Europe/Berlin"


async def _compared(engine: AsyncEngine, **asked: Any) -> Any:
    asked = {"now": datetime(2026, 11, 22, tzinfo=UTC), **asked}
    return await compared_report(engine, SETTINGS, **asked)


async def test_compared_report_shows_both_periods(engine: AsyncEngine) -> None:
    """A team of only one of them has zeros in the other; changes sum to the totals' change."""
    day = 86_400
    rows = [
        settlement(name, team=team, started_at=at, charges=(charge(name, at=at, cost_nano_usd=c),))
        for name, team, at, c in (
            ("a", "old", NOW - day, 10**9),
            ("b", "both", NOW - day, 2 * 10**9),
            ("c", "both", NOW, 5 * 10**9),
            ("d", "new", NOW, 10**9),
        )
    ]
    await Repository(engine).write(rows)
    found = await _compared(
        engine, group_by="team", since="2026-11-21", until="2026-11-22", compare="previous"
    )
    assert found["compare"] == {"since": "2026-11-20T00:00:00Z", "until": "2026-11-21T00:00:00Z"}
    shown = {
        row["team"]: (row["cost_usd"], row["previous"]["cost_usd"], row["cost_change_usd"])
        for row in found["rows"]
    }
    assert shown == {"both": ("5", "2", "3"), "new": ("1", "0", "1"), "old": ("0", "1", "-1")}
    assert found["totals"]["cost_change_usd"] == "3"
    explicit = await _compared(
        engine, since="2026-11-21", until="2026-11-22", compare="2026-11-20..2026-11-21"
    )
    assert explicit["totals"] == found["totals"]


@pytest.mark.parametrize(
    ("since", "until", "tz", "before"),
    [
        ("2026-03-01", "2026-04-01", "UTC", "2026-02-01T00:00:00Z"),
        ("2026-01-01", "2026-04-01", "UTC", "2025-10-01T00:00:00Z"),
        ("2026-03-30", "2026-03-31", "Europe/Berlin", "2026-03-29T00:00:00+01:00"),
        ("2026-11-21T10:00", "2026-11-21T12:30", "UTC", "2026-11-21T07:30:00Z"),
    ],
)
async def test_previous_period_is_as_long(
    sqlite_url: str, since: str, until: str, tz: str, before: str
) -> None:
    """Whole months by months, whole days by local days (also when clocks change), else to the s."""
    from gateway.ledger.database import open_engine

    engine = open_engine(sqlite_url)
    found = await _compared(engine, since=since, until=until, tz=tz, compare="previous")
    assert found["compare"]["since"] == before
    await engine.dispose()


@pytest.mark.parametrize(
    ("since", "now", "tz", "then"),
    [
        ("2026-11-01", "2026-11-22T08:30+00:00", "UTC", "2026-10-01T00:00 2026-10-22T08:30"),
        ("2026-09-01", "2026-11-22T08:30+00:00", "UTC", "2026-06-01T00:00 2026-08-22T08:30"),
        ("2026-03-01", "2026-03-30T09:00+02:00", BERLIN, "2026-02-01T00:00 2026-03-01T00:00"),
        ("2026-01-01", "2026-01-09T00:00+00:00", "UTC", "2025-12-01T00:00 2025-12-09T00:00"),
        ("2026-11-22", "2026-11-22T08:30+00:00", "UTC", "2026-11-21T00:00 2026-11-21T08:30"),
        ("2026-03-29", "2026-03-29T12:00+02:00", BERLIN, "2026-03-28T00:00 2026-03-28T12:00"),
        ("2026-11-16", "2026-11-22T08:30+00:00", "UTC", "2026-11-09T00:00 2026-11-15T08:30"),
        ("2026-11-21T09:00", "2026-11-22T08:30+00:00", "UTC", "2026-11-20T09:00 2026-11-21T08:30"),
    ],
)
async def test_running_period_is_compared_with_as_much_of_the_one_before(
    sqlite_url: str, since: str, now: str, tz: str, then: str
) -> None:
    """Months by months up to the same day and time, others by whole days, in the reader's zone."""
    from gateway.ledger.database import open_engine

    engine = open_engine(sqlite_url)
    at = datetime.fromisoformat(now)
    found = await _compared(engine, since=since, tz=tz, compare="previous", now=at)
    shown = found["compare"]
    assert f"{shown['since'][:16]} {shown['until'][:16]}" == then
    await engine.dispose()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"compare": "previous"}, "--since"),
        ({"compare": "last"}, "SINCE..UNTIL"),
        ({"compare": "2026-02-30..2026-03-01"}, "2026-02-30"),
        ({"compare": "2026-02-03..2026-02-01"}, "not before"),
        ({"compare": "2026-02-01..2026-02-03", "group_by": "day"}, "counterpart"),
    ],
)
async def test_impossible_comparisons_are_refused(
    sqlite_url: str, asked: dict[str, Any], named: str
) -> None:
    """The error says what would do."""
    from gateway.ledger.database import open_engine

    engine = open_engine(sqlite_url)
    with pytest.raises(ReportError, match=named):
        await _compared(engine, **asked)
    await engine.dispose()
