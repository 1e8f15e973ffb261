"""Error budgets that burn too fast, over an hour and over six."""

from datetime import UTC, datetime

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.alerts.burn import SloBurn
from gateway.alerts.model import Finding
from gateway.ledger.repository import Repository
from gateway.ledger.tables import requests
from gateway.settings import Settings
from tests.gateway.ledger.samples import NOW, settlement

_LOOKS = 13
"""Until all quarters of six hours are known."""


def _watching(settings: Settings) -> Settings:
    alerts = msgspec.structs.replace(settings.alerts, ttft_ms=500.0, ttft_share=0.9)
    return msgspec.structs.replace(settings, alerts=alerts)


async def _write(engine: AsyncEngine, *, slow: float, minutes: int = 360) -> None:
    """Ten requests a minute, of which a share was slow."""
    rows = [
        settlement(
            f"r{minute}-{number}",
            started_at=NOW - 60 * minute - 1,
            ttft_ms=900.0 if number < 10 * slow else 100.0,
        )
        for minute in range(minutes)
        for number in range(10)
    ]
    await Repository(engine).write(rows)


async def _look(check: SloBurn, engine: AsyncEngine, settings: Settings) -> list[Finding]:
    return await check(engine, settings, datetime.fromtimestamp(NOW, UTC))


async def test_latency_that_misses_for_hours_is_told_when_all_of_them_are_known(
    engine: AsyncEngine, settings: Settings
) -> None:
    """Seven in ten are slow where one may: seven times too fast, too little for the hour's rate."""
    await _write(engine, slow=0.7)
    check, watching = SloBurn(), _watching(settings)
    looks = [await _look(check, engine, watching) for _ in range(_LOOKS)]
    assert looks[0] == []
    (finding,) = looks[-1]
    assert finding.severity == "warning"
    assert finding.facts == {"objective": "time to first token", "burn_rate": 7.0}
    assert "6 h" in finding.title


@pytest.mark.parametrize(("slow", "minutes"), [(0.5, 360), (0.7, 1)], ids=["enough", "few"])
async def test_latency_that_keeps_its_budget_is_not_told(
    engine: AsyncEngine, settings: Settings, slow: float, minutes: int
) -> None:
    """Five times too fast is below the rate of six; ten requests are no ground for one."""
    await _write(engine, slow=slow, minutes=minutes)
    check, watching = SloBurn(), _watching(settings)
    for _ in range(_LOOKS):
        assert await _look(check, engine, watching) == []


async def test_past_quarters_are_read_once(engine: AsyncEngine, settings: Settings) -> None:
    """Once they are known a look costs what the last minutes have."""
    await _write(engine, slow=0.7)
    check, watching = SloBurn(), _watching(settings)
    for _ in range(_LOOKS):
        before = await _look(check, engine, watching)
    async with engine.begin() as connection:
        old = requests.c.started_us < round((NOW - 3_600) * 1e6)
        await connection.execute(requests.delete().where(old))
    assert await _look(check, engine, watching) == before
