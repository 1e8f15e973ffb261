"""Dollars per million tokens by how many requests were served at once."""

from datetime import UTC, datetime

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.batch_levels import Work, batch_report, mean_batches
from gateway.ledger.report_query import ReportError, ReportQuery
from gateway.ledger.repository import Repository
from tests.gateway.ledger.samples import NOW, charge, settlement

QUERY = ReportQuery(until=datetime(2027, 1, 1, tzinfo=UTC))


def _work(backend: str, began_us: int, ended_us: int) -> Work:
    return Work((), backend, began_us, ended_us, 1, 1, 1)


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
        found = await batch_report(connection, QUERY, ("backend", "machine_type"))
        with pytest.raises(ReportError, match="allowed: backend"):
            await batch_report(connection, QUERY, ("team",))
    shown = [(r["backend"], r["machine_type"], r["batch"], r["charges"], r["cost_usd"],
              r["usd_per_million_tokens"]) for r in found]  # fmt: skip
    assert shown == [
        ("small", "cpu", "1", 1, "0.000009", "0.075000"),
        ("small", "cpu", "2-3", 3, "0.000009", "0.025000"),
    ]
