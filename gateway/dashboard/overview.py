"""`/`: what happens now, what it costs, and what needs somebody's attention."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

from gateway.alerts.store import list_alerts
from gateway.api.admin_budgets import shown_budgets
from gateway.api.health import describe
from gateway.dashboard.charts import Chart, over_time
from gateway.dashboard.notices import notices
from gateway.dashboard.periods import period_of, steps
from gateway.dashboard.render import now as clock
from gateway.dashboard.request_rows import latencies, recent_requests
from gateway.dashboard.visitor import Visit
from gateway.ledger.budget_store import EVERYBODY

BUDGETS_SHOWN = 6
NEWEST = 8
NOTICES_FIRST = 6
"""More fold away, so that the figures stay on the screen."""
ALERTS_SHOWN = 10


async def overview(visit: Visit) -> dict[str, Any]:
    """Tiles, the last 24 hours, budgets, machines, the newest requests."""
    parts, now = visit.parts, clock()
    asked: dict[str, Any] = {"tz": visit.tz, "now": now}
    day = period_of({"period": "today"}, visit.tz, now)
    month = period_of({"period": "month"}, visit.tz, now)
    hours = period_of({"period": "24h"}, visit.tz, now)
    today, this_month, by_hour, health = await asyncio.gather(
        visit.questions.report(since=day.since, **asked),
        visit.questions.rows(since=month.since, **asked),
        visit.questions.rows(
            since=hours.since,
            group_by=["hour", "backend"],
            wanted={"answers", "costs"},
            **asked,
        ),
        describe(visit.pipeline),
    )
    async with parts.engine.connect() as connection:
        times = await latencies(connection, since=now - timedelta(hours=1))
        rows = await recent_requests(connection, limit=NEWEST)
        firing = await list_alerts(connection, open_only=True, limit=ALERTS_SHOWN)
    budgets = await _budgets(visit)
    limits = {one["window"]: one for one in budgets if one["scope"] == EVERYBODY}
    moments = steps(hours, visit.tz, now)
    return {
        "health": health,
        "today": today,
        "month": this_month[0],
        "month_end": await visit.questions.month_end(visit.tz),
        "latency": times,
        "requests": rows,
        "budgets": budgets[:BUDGETS_SHOWN],
        "limits": limits,
        "needs_key": parts.settings.server.auth == "keys",
        "budgets_hidden": max(len(budgets) - BUDGETS_SHOWN, 0),
        "notices": notices(visit, health, budgets, firing),
        "notices_first": NOTICES_FIRST,
        "busy": [_machine(machine) for machine in today["machines"]],
        "live": visit.live,
        "charts": {
            "cost": _hourly("cost", "Cost per hour", by_hour, moments, "cost_usd", "$"),
            "requests": _hourly("requests", "Requests per hour", by_hour, moments, "requests", ""),
        },
    }


async def _budgets(visit: Visit) -> list[dict[str, Any]]:
    """Those that the key may see, the fullest first."""
    if not visit.caller.can("budgets:read", team=visit.caller.team):
        return []
    found = await shown_budgets(visit.pipeline, visit.caller)
    for budget in found:
        budget["used"] = used_share(budget)
    return sorted(found, key=lambda budget: -budget["used"])


def used_share(budget: dict[str, Any]) -> float:
    """Of the limit, 1 and more: it is spent."""
    taken = sum(Decimal(budget[name]) for name in ("spent_usd", "reserved_usd", "overrun_usd"))
    return float(taken / Decimal(budget["limit_usd"]))


def _hourly(
    name: str, title: str, rows: list[dict[str, Any]], moments: Any, figure: str, unit: Any
) -> Chart:
    at = {said: unix_s for unix_s, said in moments}
    cells = {
        (at[row["hour"]], row["backend"] or "nobody"): float(row[figure])
        for row in rows
        if row["hour"] in at
    }
    series, table = over_time(cells, at.values())
    columns = ("Hour", *series)
    return Chart(name=name, title=title, kind="stack", columns=columns, rows=table, unit=unit)


def _machine(machine: dict[str, Any]) -> dict[str, Any]:
    """How today's cost of a machine divides into busy, idle and the rest, shares of 1."""
    cost = Decimal(machine["cost_usd"])
    parts = {"busy": machine["charged_usd"], "idle": machine["idle_usd"]}
    shares = {name: float(Decimal(usd) / cost) if cost else 0.0 for name, usd in parts.items()}
    return {**machine, **shares}
