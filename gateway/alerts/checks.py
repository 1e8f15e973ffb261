"""What is looked for in the ledger: each check gives all that it finds wrong now."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from sqlalchemy import select

from gateway.alerts.burn import FEWEST_REQUESTS, SloBurn, counts
from gateway.alerts.model import Finding
from gateway.alerts.settings import Kind
from gateway.insights.changes import Change, find_changes
from gateway.insights.outlook import Outlook, outlook
from gateway.insights.series import By
from gateway.ledger import budget_store as budgets
from gateway.ledger.money import short_usd, usd_text
from gateway.ledger.reconcile import reconcile_hours
from gateway.ledger.tables import alerts, budget_alerts
from gateway.ledger.windows import first_start_us
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_DIMENSIONS: Final[dict[str, By]] = {"team": "team", "key": "key", "model": "backend"}
"""Of budgets' scopes, as roll-ups call them."""
_LATE: Final = timedelta(minutes=10)
"""Until so long after its end an hour may still get charges."""

Check = Callable[["AsyncEngine", Settings, datetime], Awaitable[list[Finding]]]


async def budget_thresholds(
    engine: "AsyncEngine", _settings: Settings, now: datetime
) -> list[Finding]:
    """Thresholds passed in windows that still last; of a limit raised since, those of the new one
    that are passed, too. Of several that were passed at once the highest says it all."""
    async with engine.connect() as connection:
        limits = {(b.scope, b.window): b for b in await budgets.list_budgets(connection)}
        counters = {at: budgets.counter_of(b, now.timestamp()) for at, b in limits.items()}
        spend = await budgets.read_spend(connection, list(counters.values()))
        passed = (await connection.execute(select(budget_alerts))).all()
        told = set((await connection.execute(select(alerts.c.open_key))).scalars())
    found: dict[tuple[str, str], list[tuple[int, Finding]]] = {}
    for row in passed:
        budget = limits.get((row.scope, row.window))
        if budget is None or row.percent not in budget.alert_percents:
            continue
        counter, spent = counters[row.scope, row.window], row.spent_nano_usd
        if row.window_start_us < first_start_us(budget.window, counter.start_us):
            continue
        if row.limit_nano_usd < budget.limit_nano_usd:
            known = spend.get(counter, budgets.Spend())
            if not budgets.passes(budget, known, row.percent, refused=False):
                continue
            spent = known.used
        of_budget = found.setdefault((row.scope, row.window), [])
        of_budget.append((row.percent, _threshold(row, budget, spent)))
    return [
        finding
        for of_budget in found.values()
        for percent, finding in of_budget
        if percent == max(one for one, _ in of_budget) or finding.key in told
    ]


def _threshold(row: Any, budget: budgets.Budget, spent_nano_usd: int) -> Finding:
    spent, limit = usd_text(spent_nano_usd), usd_text(budget.limit_nano_usd)
    refuses = row.percent >= 100 and not budget.soft
    text = [f"${spent} of ${limit}."]
    if budget.downgrade_percent is not None and row.percent >= budget.downgrade_percent:
        text.append(f"Policy {budget.downgrade_policy!r} decides until the window ends.")
    if refuses:
        text.append("Requests that may cost more than what is left get 429 insufficient_quota.")
    return Finding(
        key=f"budget:{row.scope}:{row.window}:{row.window_start_us}:{row.percent}",
        kind="budget",
        severity="critical" if refuses else "warning",
        title=f"Budget of {row.scope} per {row.window}: {row.percent} % spent",
        text=" ".join(text),
        facts={"scope": row.scope, "window": row.window, "spent_usd": spent, "limit_usd": limit},
    )


async def budget_forecasts(
    engine: "AsyncEngine", _settings: Settings, now: datetime
) -> list[Finding]:
    """Budgets of days, weeks and months that their window's end will find overspent."""
    found: list[Finding] = []
    known: dict[tuple[By, datetime, datetime], list[Outlook]] = {}
    async with engine.connect() as connection:
        limits = await budgets.list_budgets(connection)
        counters = {budgets.counter_of(b, now.timestamp()): b for b in limits}
        spend = await budgets.read_spend(connection, list(counters))
        for counter, budget in counters.items():
            kind, _, name = budget.scope.partition(":")
            by = "all" if budget.scope == budgets.EVERYBODY else _DIMENSIONS.get(kind)
            period = _period(budget, counter.start_us)
            if by is None or period is None:
                continue
            if (by, *period) not in known:
                begin, end = period
                known[by, begin, end] = await outlook(connection, by, begin=begin, end=end, now=now)
            used = spend[counter].used if counter in spend else 0
            for one in known[by, *period]:
                if one.name == name and used < budget.limit_nano_usd:
                    found += _overspent(budget, one, counter.start_us)
    return found


def _overspent(budget: budgets.Budget, one: Outlook, start_us: int) -> list[Finding]:
    forecast, limit = one.forecast, budget.limit_nano_usd
    if forecast is None or forecast.expected <= limit:
        return []
    usd = {n: usd_text(round(getattr(forecast, n))) for n in ("expected", "low", "high")}
    about = {name: short_usd(text) for name, text in usd.items()}
    return [
        Finding(
            key=f"budget_forecast:{budget.scope}:{budget.window}:{start_us}",
            kind="budget_forecast",
            title=f"Budget of {budget.scope} per {budget.window}: ${about['expected']} forecast, "
            f"${short_usd(usd_text(limit))} allowed",
            text=f"Between ${about['low']} and ${about['high']} in {forecast.coverage:.0%} of "
            f"cases. {forecast.note}".strip(),
            facts={"scope": budget.scope, "limit_usd": usd_text(limit), **usd},
        )
    ]


def _period(budget: budgets.Budget, start_us: int) -> tuple[datetime, datetime] | None:
    """Begin and end of a calendar window; None for others."""
    begin = datetime.fromtimestamp(start_us / 1e6, ZoneInfo(budget.tz))
    if budget.window == "month":
        return begin, (begin + timedelta(days=32)).replace(day=1)
    days = {"day": 1, "week": 7}.get(budget.window)
    return None if days is None else (begin, begin + timedelta(days=days))


async def anomalies(engine: "AsyncEngine", _settings: Settings, now: datetime) -> list[Finding]:
    """Teams, models and machines that left their band in the last full hour."""
    async with engine.connect() as connection:
        return [_anomaly(change) for change in await find_changes(connection, now)]


def _anomaly(change: Change) -> Finding:
    hours = "the last hour" if change.hours == 1 else f"{change.hours} hours"
    actual, expected = usd_text(change.actual_nano_usd), usd_text(change.expected_nano_usd)
    return Finding(
        key=f"anomaly:{change.by}:{change.name}:{'more' if change.times > 1 else 'less'}",
        kind="anomaly",
        title=f"{change.by} {change.name}: {change.times:.1f} times its usual spending in {hours}",
        text=f"${short_usd(actual)}, where ${short_usd(expected)} is usual. {change.reason}.",
        facts={
            change.by: change.name,
            "actual_usd": actual,
            "expected_usd": expected,
            "score": change.score,
        },
    )


async def error_rate(engine: "AsyncEngine", settings: Settings, now: datetime) -> list[Finding]:
    """Too many of the last minutes' requests failed for our reasons."""
    bound = settings.alerts.error_rate
    if bound is None:
        return []
    async with engine.connect() as connection:
        count, failed, _ = await counts(connection, now.timestamp() - 300)
    if count < FEWEST_REQUESTS or failed / count <= bound:
        return []
    return [
        Finding(
            key="error_rate",
            kind="error_rate",
            severity="critical",
            title=f"{failed / count:.0%} of the requests of five minutes failed",
            text=f"{failed} of {count}; the bound is {bound:.0%}. "
            "`headgate status` names backends that are down.",
            facts={"requests": count, "failed": failed},
        )
    ]


async def unattributed(engine: "AsyncEngine", settings: Settings, now: datetime) -> list[Finding]:
    """Machines whose last hour cost more, or less, than charges and idle time explain."""
    bound = settings.alerts.unattributed
    if bound is None:
        return []
    end = (now.astimezone(UTC) - _LATE).replace(minute=0, second=0, microsecond=0)
    report = await reconcile_hours(
        engine,
        settings,
        since=(end - timedelta(hours=1)).isoformat(),
        until=end.isoformat(),
        tolerance=Decimal(str(bound)),
        now=now,
    )
    return [
        Finding(
            key=f"unattributed:{row['machine']}",
            kind="unattributed",
            title=_unattributed(row),
            text=f"The bound is {bound:.1%}. `headgate report reconcile --since {row['hour']}` "
            "says which engine or charge is missing.",
            facts={"machine": row["machine"], "hour": row["hour"]},
        )
        for row in report["hours"]
        if not row["ok"]
    ]


def _unattributed(row: Mapping[str, Any]) -> str:
    """In words, whichever of both sides is the larger one."""
    usd, cost = row["unattributed_usd"], short_usd(row["cost_usd"])
    difference, hour = short_usd(usd.removeprefix("-")), f"in the hour of {_hour(row['hour'])}"
    if usd.startswith("-"):
        return (
            f"Machine {row['machine']}: charges and idle time are ${difference} more than the "
            f"${cost} that it cost {hour}"
        )
    return f"Machine {row['machine']}: ${difference} of ${cost} {hour} is unattributed"


def _hour(text: str) -> str:
    """`2026-11-21T08:00:00+00:00` → `2026-11-21 08:00 UTC`."""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def often() -> dict[Kind, Check]:
    """At every look of one watch."""
    return {"budget": budget_thresholds, "error_rate": error_rate, "slo_burn": SloBurn()}


HOURLY: Final[dict[Kind, Check]] = {
    "budget_forecast": budget_forecasts,
    "anomaly": anomalies,
    "unattributed": unattributed,
}
"""Of full hours: once each."""


async def hourly_findings(
    engine: "AsyncEngine", settings: Settings, *, now: float
) -> dict[Kind, list[Finding]]:
    """What HOURLY finds, by kind; without those that the settings turn off."""
    alerts, at = settings.alerts, datetime.fromtimestamp(now, UTC)
    off = {
        kind
        for kind, wanted in (("anomaly", alerts.anomalies), ("budget_forecast", alerts.forecasts))
        if not wanted
    }
    return {k: await check(engine, settings, at) for k, check in HOURLY.items() if k not in off}
