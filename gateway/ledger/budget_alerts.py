"""Thresholds of budgets: told once per window, whatever the number of processes.

The row in `budget_alerts` is the event: it is there from the moment a process says so, outlives it,
and nobody writes it twice. Whoever delivers alerts reads it there.
"""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct
from sqlalchemy import select

from gateway.ledger.budget_store import Budget, Counter, Spend, nameless, order, passes
from gateway.ledger.database import insert_once, now_us
from gateway.ledger.money import usd_text
from gateway.ledger.tables import budget_alerts
from gateway.ledger.windows import first_start_us, rolls

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = structlog.get_logger(__name__)


class Alert(Struct, frozen=True, kw_only=True):
    """A threshold that was passed."""

    scope: str
    window: str
    window_started_at: float
    """Unix seconds."""
    percent: int
    at: float
    """Unix seconds."""
    spent_nano_usd: int
    limit_nano_usd: int


class Thresholds:
    """One process's look at all budgets' thresholds."""

    def __init__(self, engine: "AsyncEngine") -> None:
        self._engine = engine
        self._passed: set[tuple[Counter, int]] = set()
        """At the last look: no need to ask SQL again."""

    async def tell(
        self,
        budgets: Mapping[Counter, Budget],
        spend: Mapping[Counter, Spend],
        refused: Set[Counter] = frozenset(),
    ) -> None:
        """Write down what was passed since the last look. Raises SQLAlchemyError.

        Args:
            refused: those that had no room for a request, whatever the others hold.
        """
        passed = {
            (counter, percent)
            for counter, budget in budgets.items()
            for percent in budget.alert_percents
            if counter in spend and passes(budget, spend[counter], percent, counter in refused)
        }
        new = passed - self._passed
        for counter, percent in sorted(new, key=lambda one: (*order(one[0]), one[1])):
            await self._tell_one(counter, budgets[counter], percent, spend[counter].used)
        self._passed = passed

    async def _tell_one(self, counter: Counter, budget: Budget, percent: int, used: int) -> None:
        async with self._engine.begin() as connection:
            if rolls(counter.window) and await _told(connection, counter, percent):
                return  # in an earlier bucket, which still counts
            told = await connection.execute(
                insert_once(connection.dialect.name, budget_alerts).values(
                    scope=counter.scope,
                    window=counter.window,
                    window_start_us=counter.start_us,
                    percent=percent,
                    at_us=now_us(connection.dialect.name),
                    spent_nano_usd=used,
                    limit_nano_usd=budget.limit_nano_usd,
                )
            )
        if told.rowcount == 1:
            log.warning(
                "budget_threshold_passed",
                scope=nameless(budget.scope),
                window=budget.window,
                percent=percent,
                soft=budget.soft,
                limit_usd=usd_text(budget.limit_nano_usd),
                spent_usd=usd_text(used),
            )


async def _told(connection: "AsyncConnection", counter: Counter, percent: int) -> bool:
    c = budget_alerts.c
    since_us = first_start_us(counter.window, counter.start_us)
    found = await connection.execute(
        select(c.percent).where(
            c.scope == counter.scope,
            c.window == counter.window,
            c.window_start_us >= since_us,
            c.percent == percent,
        )
    )
    return found.first() is not None


async def list_alerts(connection: "AsyncConnection", *, limit: int = 100) -> list[Alert]:
    """The newest alerts first."""
    rows = await connection.execute(
        select(budget_alerts).order_by(budget_alerts.c.at_us.desc()).limit(limit)
    )
    return [
        Alert(
            scope=row.scope,
            window=row.window,
            window_started_at=row.window_start_us / 1e6,
            percent=row.percent,
            at=row.at_us / 1e6,
            spent_nano_usd=row.spent_nano_usd,
            limit_nano_usd=row.limit_nano_usd,
        )
        for row in rows
    ]
