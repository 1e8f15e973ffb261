"""What needs attention, in one list: the overview shows it on top.

Whoever has more to tell (alerts, forecasts, anomalies) adds to `notices`.
"""

from typing import Any, Literal

from msgspec import Struct

from gateway.dashboard.visitor import Visit


class Notice(Struct, frozen=True, kw_only=True):
    """One line."""

    level: Literal["bad", "warn", "info"]
    text: str
    href: str = ""
    """Where something can be done about it."""


def notices(visit: Visit, health: dict[str, Any], budgets: list[dict[str, Any]]) -> list[Notice]:
    """The worst first."""
    found = [Notice(level="bad", text=problem, href="/backends") for problem in health["problems"]]
    found += [notice for budget in budgets if (notice := _of_budget(budget))]
    found += [
        Notice(
            level="info",
            text=f"Override {one['slot']} = {one['value']}, until {one['until']}.",
            href="/routing#overrides",
        )
        for one in health["overrides"]
    ]
    order = {"bad": 0, "warn": 1, "info": 2}
    return sorted(found, key=lambda notice: order[notice.level])


def _of_budget(budget: dict[str, Any]) -> Notice | None:
    """A budget that is spent, or past one of its thresholds."""
    passed = [p for p in budget["alert_percents"] if budget["used"] * 100 >= p]
    if not passed:
        return None
    words = f"{budget['scope']} has used {budget['used']:.0%} of ${budget['limit_usd']}"
    return Notice(
        level="bad" if budget["used"] >= 1 and not budget["soft"] else "warn",
        text=f"{words} per {budget['window']}.",
        href="/budgets",
    )
