"""What needs attention, in one list: the overview shows it on top."""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from gateway.alerts.model import Alert, moment
from gateway.dashboard.render import share
from gateway.dashboard.visitor import Visit

_OF_BUDGETS = ("budget", "budget_forecast")
_LEVELS: dict[str, Literal["bad", "warn", "info"]] = {"critical": "bad", "warning": "warn"}


class Notice(Struct, frozen=True, kw_only=True):
    """One line."""

    level: Literal["bad", "warn", "info"]
    text: str
    href: str = ""
    """Where something can be done about it."""
    since: str = ""
    until: str = ""
    """RFC 3339, where they are known."""


def notices(
    visit: Visit,
    health: dict[str, Any],
    budgets: list[dict[str, Any]],
    firing: Sequence[Alert] = (),
) -> list[Notice]:
    """The worst first."""
    found = [Notice(level="bad", text=problem, href="/backends") for problem in health["problems"]]
    found += _of_alerts(visit, firing)
    found += [notice for budget in budgets if (notice := _of_budget(budget))]
    found += [
        Notice(
            level="info",
            text=f"Override {one['slot']} = {one['value']}",
            href="/routing#overrides",
            until=one["until"],
        )
        for one in health["overrides"]
    ]
    order = {"bad": 0, "warn": 1, "info": 2}
    return sorted(found, key=lambda notice: order[notice.level])


def _of_alerts(visit: Visit, firing: Sequence[Alert]) -> list[Notice]:
    """What fires; a budget's threshold stands among the budgets already, and who may not see
    budgets hears nothing of them."""
    sees_budgets = visit.caller.can("budgets:read", team=visit.caller.team)
    href = "/alerts" if visit.caller.can("operations:read") else ""
    return [
        Notice(
            level=_LEVELS.get(alert.severity, "info"),
            text=alert.title,
            href=href,
            since=moment(alert.opened_at),
        )
        for alert in firing
        if alert.kind != "budget" and (sees_budgets or alert.kind not in _OF_BUDGETS)
    ]


def _of_budget(budget: dict[str, Any]) -> Notice | None:
    """A budget that is spent, or past one of its thresholds."""
    passed = [p for p in budget["alert_percents"] if budget["used"] * 100 >= p]
    if not passed:
        return None
    words = f"{budget['scope']} has used {share(budget['used'])} of ${budget['limit_usd']}"
    return Notice(
        level="bad" if budget["used"] >= 1 and not budget["soft"] else "warn",
        text=f"{words} per {budget['window']}",
        href="/budgets",
    )
