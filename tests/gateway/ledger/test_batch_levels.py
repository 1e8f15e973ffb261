"""Dollars per million tokens by how many requests were served at once."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.batch_levels import Work, batch_report, mean_batches
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.report_query import ReportError, ReportQuery
from gateway.ledger.repository import Repository
from gateway.settings import MachineSettings, Settings
from tests.gateway.ledger.samples import NOW, charge, settlement

SETTINGS = Settings(
    machines=[MachineSettings(name="local", type="cpu", usd_per_hour=Decimal("3.60"))]
)
QUERY = ReportQuery(until=datetime(2027, 1, 1, tzinfo=UTC))


def _work(backend: str, began_us: int, ended_us: int) -> Work:
    return Work((), backend, "local", began_us, ended_us, 1, 1, 1)


def test_mean_batch_is_weighted_by_time() -> None:
    """Half of the time two, half alone: one and a half; other backends do not matter."""
    found = [_work("a", 0, 100), _work("a", 50, 100), _work("b", 0, 100), _work("a", 100, 101)]
    assert mean_batches(found) == [1.5, 2.0, 1.0, 1.0]
    assert mean_batches([_work("a", 7, 9)] * 5) == [5.0] * 5


async def test_tokens_in_a_batch_have_their_own_row(engine: AsyncEngine) -> None:
    """One alone, three at once, by backend and level; encoders and corrections are no batch."""
    alone = charge("alone", at=NOW + 1, cost_nano_usd=9_000)
    rows = [settlement("alone", charges=(alone,))]
    for number in range(3):
        name, begin = f"r{number}", NOW + 10
        answer = charge(name, at=begin + 2, cost_nano_usd=3_000)
        encoder = charge(name, 800, kind="encoder", at=begin + 1)
        rows.append(settlement(name, charges=(answer, encoder), started_at=begin))
    await Repository(engine).write(rows)
    async with engine.connect() as connection:
        found = await batch_report(connection, SETTINGS, QUERY, ("backend", "machine_type"))
        with pytest.raises(ReportError, match="allowed: backend"):
            await batch_report(connection, SETTINGS, QUERY, ("team",))
    shown = [(r["backend"], r["machine_type"], r["batch"], r["charges"], r["cost_usd"],
              r["usd_per_million_tokens"]) for r in found]  # fmt: skip
    assert shown == [
        ("small", "cpu", "1", 1, "0.000009", "0.075000"),
        ("small", "cpu", "2-3", 3, "0.000009", "0.025000"),
    ]


async def test_idle_hours_are_shared_out_over_the_levels(engine: AsyncEngine) -> None:
    """Full cost is charges and all of what the machine cost beside them, by the chosen key."""
    alone = charge("alone", at=NOW + 1, cost_nano_usd=9_000)
    rows = [settlement("alone", charges=(alone,))]
    for number in range(3):
        answer = charge(f"r{number}", at=NOW + 12, cost_nano_usd=1_000)
        rows.append(settlement(f"r{number}", charges=(answer,), started_at=NOW + 10))
    await Repository(engine).write(rows)
    began, clock = round(NOW) * 10**9, MachineClock(engine)
    for kind in ("run", "idle"):
        await clock.record("local", "small", kind, began, began + 40 * 10**9)
    await clock.aclose()
    for idle_by, shares in (("charges", (30, 10)), ("requests", (10, 30)), ("groups", (20, 20))):
        query = replace(QUERY, idle_by=idle_by)
        async with engine.connect() as connection:
            found = await batch_report(connection, SETTINGS, query)
        costs = [Decimal(row["cost_usd"]) for row in found]
        full = [Decimal(row["full_cost_usd"]) for row in found]
        assert [one - other for one, other in zip(full, costs, strict=True)] == [
            share * Decimal("0.001") for share in shares
        ]
