"""Budgets' thresholds as alerts: they last as long as they are true."""

from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.alerts.checks import budget_thresholds
from gateway.alerts.store import open_alert
from gateway.ledger.budget_alerts import Thresholds
from gateway.ledger.budget_store import Budget, Spend, counter_of, read_spend, set_budget
from gateway.ledger.database import writing
from gateway.ledger.tables import budget_spend
from gateway.settings import Settings
from tests.gateway.ledger.samples import NOW

CENT = 10_000_000


async def test_raised_limit_ends_its_alerts_and_may_raise_them_anew(
    settings: Settings, engine: AsyncEngine, tmp_path: Path
) -> None:
    """What was passed of the old limit is resolved; what is passed of the new one is told."""
    budget = Budget(scope="team:search", window="day", limit_nano_usd=10 * CENT)
    counter = counter_of(budget, NOW)
    thresholds = Thresholds(engine)

    async def spend(cents: int, limit: int) -> list[tuple[str, str]]:
        now = replace(budget, limit_nano_usd=limit * CENT)
        async with writing(engine) as connection:
            await set_budget(connection, now, now=NOW)
            await connection.execute(budget_spend.delete())
            spent = budget_spend.insert().values(
                scope=counter.scope,
                window=counter.window,
                window_start_us=counter.start_us,
                spent_nano_usd=cents * CENT,
            )
            await connection.execute(spent)
            found = await read_spend(connection, [counter])
        await thresholds.tell({counter: now}, found)
        findings = await budget_thresholds(engine, settings, datetime.fromtimestamp(NOW, UTC))
        return sorted((one.title.split(": ")[1], str(one.facts["limit_usd"])) for one in findings)

    assert await spend(5, limit=10) == []
    assert await spend(10, limit=10) == [("100 % spent", "0.1")]
    assert await spend(11, limit=100) == []
    assert await spend(85, limit=100) == [("80 % spent", "1")]
    assert await spend(99, limit=50) == [("100 % spent", "0.5")]


async def test_threshold_told_before_stays_open_when_a_higher_one_is_passed(
    settings: Settings, engine: AsyncEngine
) -> None:
    """80 % told, then 100 %: both are wrong. Both passed at one look: one alert, the higher one."""
    budget = Budget(scope="team:search", window="day", limit_nano_usd=10 * CENT)
    counter, thresholds = counter_of(budget, NOW), Thresholds(engine)
    async with writing(engine) as connection:
        await set_budget(connection, budget, now=NOW)

    async def told(cents: int) -> list[str]:
        await thresholds.tell({counter: budget}, {counter: Spend(spent=cents * CENT)})
        found = await budget_thresholds(engine, settings, datetime.fromtimestamp(NOW, UTC))
        async with writing(engine) as connection:
            for one in found:
                await open_alert(connection, one, (), now=NOW)
        return sorted(one.title.split(": ")[1] for one in found)

    assert await told(8) == ["80 % spent"]
    assert await told(10) == ["100 % spent", "80 % spent"]
