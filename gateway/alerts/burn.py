"""Objectives of availability and latency: how fast their error budgets burn.

Two windows each must burn too fast: a long one, so that it matters, a short one, so that it goes
on. An hour is read from the rows at every look. Of six hours each past quarter is read once and
remembered, so a look costs what the last minutes have; until all are known, and where there is no
latency objective, roll-ups say how many failed.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import case, func, select

from gateway.alerts.model import Finding, Severity
from gateway.alerts.settings import AlertSettings
from gateway.ledger.rollups import QUARTER_S
from gateway.ledger.tables import requests, rollup_keys, rollups
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

FEWEST_REQUESTS: Final = 20
"""Fewer are no ground for a rate."""
_BURNS: Final[tuple[tuple[float, float, float, Severity], ...]] = (
    (3600, 300, 14.4, "critical"),
    (6 * 3600, 1800, 6.0, "warning"),
)
"""Long window, short window (seconds), rate: Site Reliability Workbook, 2018, chapter 5."""
_LATE_S: Final = 600
"""Until so long after its end a quarter may still get rows."""
_QUARTERS_A_LOOK: Final = 2
"""Past ones that are read at once after a start."""

Counts = tuple[int, int, int]
"""Requests, failed ones, slow ones."""


class SloBurn:
    """The check: objectives whose error budget burns so fast that a month's would not last."""

    def __init__(self) -> None:
        self._quarters: dict[int, Counts] = {}
        """By begin, unix seconds."""

    async def __call__(
        self, engine: "AsyncEngine", settings: Settings, now: datetime
    ) -> list[Finding]:
        alerts = settings.alerts
        found: list[Finding] = []
        told: set[str] = set()
        async with engine.connect() as connection:
            for long_s, short_s, rate, severity in _BURNS:
                windows = [
                    await self._window(connection, now.timestamp(), seconds, alerts)
                    for seconds in (long_s, short_s)
                ]
                if min(count for count, _, _ in windows) < FEWEST_REQUESTS:
                    continue
                for name, bad, allowed in _objectives(alerts):
                    if name in told:
                        continue  # the faster burn says it already
                    burns = [one[bad] / one[0] / allowed for one in windows]
                    if min(burns) > rate:
                        told.add(name)
                        found.append(_burn(name, severity, long_s, burns[0], allowed))
        return found

    async def _window(
        self, connection: "AsyncConnection", now: float, seconds: float, alerts: AlertSettings
    ) -> Counts:
        if seconds <= 3600:
            return await counts(connection, now - seconds, ttft_ms=alerts.ttft_ms)
        if alerts.ttft_ms is not None:
            found = await self._remembered(connection, now, seconds, alerts.ttft_ms)
            if found is not None:
                return found
        return await _rolled_up(connection, now - seconds)

    async def _remembered(
        self, connection: "AsyncConnection", now: float, seconds: float, ttft_ms: float
    ) -> Counts | None:
        """Of whole quarters and what follows them; None: not all are known yet."""
        first = -(-int(now - seconds) // QUARTER_S) * QUARTER_S
        end = int(now - _LATE_S) // QUARTER_S * QUARTER_S
        wanted = range(first, end, QUARTER_S)
        known = {at: its for at, its in self._quarters.items() if at in wanted}
        missing = [at for at in reversed(wanted) if at not in known]
        for at in missing[:_QUARTERS_A_LOOK]:
            known[at] = await counts(connection, at, at + QUARTER_S, ttft_ms=ttft_ms)
        self._quarters = known
        if len(known) < len(wanted):
            return None
        parts = [*known.values(), await counts(connection, end, ttft_ms=ttft_ms)]
        return (
            sum(count for count, _, _ in parts),
            sum(failed for _, failed, _ in parts),
            sum(slow for _, _, slow in parts),
        )


async def counts(
    connection: "AsyncConnection",
    since: float,
    until: float | None = None,
    *,
    ttft_ms: float | None = None,
) -> Counts:
    """From the rows.

    Args:
        since, until: unix seconds; None: until now.
        ttft_ms: a request is slow whose first token came later; None: none is.
    """
    c = requests.c
    slow = 0 if ttft_ms is None else case((c.ttft_ms > ttft_ms, 1), else_=0)
    query = select(
        func.count(), func.sum(case((c.outcome == "error", 1), else_=0)), func.sum(slow)
    ).where(c.started_us >= round(since * 1e6))
    if until is not None:
        query = query.where(c.started_us < round(until * 1e6))
    row = (await connection.execute(query)).one()
    return int(row[0] or 0), int(row[1] or 0), int(row[2] or 0)


async def _rolled_up(connection: "AsyncConnection", since: float) -> Counts:
    k, r = rollup_keys.c, rollups.c
    query = (
        select(func.sum(r.requests), func.sum(r.errors))
        .join_from(rollups, rollup_keys, k.id == r.key_id)
        .where(k.fact == "request", r.span_s == QUARTER_S, r.bucket_us >= round(since * 1e6))
    )
    row = (await connection.execute(query)).one()
    return int(row[0] or 0), int(row[1] or 0), 0


def _objectives(alerts: AlertSettings) -> list[tuple[str, int, float]]:
    """(name, place of its bad requests in a window's counts, share allowed)"""
    found = []
    if alerts.availability is not None:
        found.append(("availability", 1, 1 - alerts.availability))
    if alerts.ttft_ms is not None:
        found.append(("time to first token", 2, 1 - alerts.ttft_share))
    return found


def _burn(name: str, severity: Severity, long_s: float, burn: float, allowed: float) -> Finding:
    hours = long_s / 3600
    return Finding(
        key=f"slo_burn:{name}:{severity}",
        kind="slo_burn",
        severity=severity,
        title=f"Objective {name}: error budget of {hours:.0f} h burns {burn:.1f} times too fast",
        text=f"{burn * allowed:.2%} of the requests of {hours:.0f} h missed it, "
        f"{allowed:.2%} may; at this rate 30 days' budget lasts {30 * 24 / burn:.0f} h.",
        facts={"objective": name, "burn_rate": round(burn, 2)},
    )
