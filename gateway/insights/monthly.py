"""A month of one team, or of all, as one printable HTML file: no script, no host but itself.

It is sent once to each channel that asks for it (see gateway/alerts/reports.py).
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.ledger.compare import PREVIOUS, compared_report
from gateway.ledger.money import decimals_of, dollars
from gateway.ledger.report_query import CHARGE_KEYS, ReportError, called, parse_query
from gateway.ledger.reports import cost_rows, costs_report
from gateway.settings import Settings

if TYPE_CHECKING:
    from jinja2 import Template
    from sqlalchemy.ext.asyncio import AsyncEngine

EVERYBODY = "global"
EVERY_TEAM = "team:*"
_MONTH = re.compile(r"^(\d{4})-(0[1-9]|1[0-2])$")
_TABLES = (("model", "Models"), ("backend", "Backends"), ("key", "Keys"), ("task", "Tasks"))
_WIDTH, _HEIGHT = 640, 140


class MonthlyReport(Struct, frozen=True, kw_only=True):
    """What is sent, or written to a file."""

    html: str
    """One file, to be looked at and printed."""
    title: str
    text: str
    """A few lines, for who reads no more."""
    facts: dict[str, str | int]


class Bar(Struct, frozen=True):
    """A day's rectangle in the drawing."""

    x: float
    y: float
    width: float
    height: float
    day: str
    usd: str


def check_month(month: str) -> str:
    """The month as it was. Raises ReportError."""
    if _MONTH.match(month) is None:
        raise ReportError(f"month {month!r}; give YYYY-MM, such as 2026-11")
    return month


def month_before(now: datetime) -> str:
    """The last whole one."""
    return (now.replace(day=1) - timedelta(days=1)).strftime("%Y-%m")


async def monthly_report(
    engine: "AsyncEngine",
    settings: Settings,
    *,
    month: str,
    team: str | None = None,
    tz: str = "UTC",
    now: datetime | None = None,
) -> MonthlyReport:
    """A month, or the part of it that is over.

    Raises:
        ReportError: no such month, zone or team name.
        SQLAlchemyError: the database does not answer.
    """
    now = now or datetime.now(UTC)
    first = datetime.strptime(check_month(month), "%Y-%m").date()
    after = (first + timedelta(days=32)).replace(day=1)
    filters = {} if team is None else {"team": [team]}
    month_ = parse_query(since=first.isoformat(), until=after.isoformat(), tz=tz, now=now)
    over = month_.until <= now
    asked: dict[str, Any] = {
        "since": first.isoformat(),
        "until": after.isoformat() if over else None,
        "tz": tz,
        "filters": filters,
        "now": now,
    }
    days = await costs_report(engine, settings, group_by="day", **asked)
    tables = []
    for key, title in _TABLES if team is not None else (("team", "Teams"), *_TABLES):
        found = await compared_report(engine, settings, group_by=key, compare=PREVIOUS, **asked)
        rows = _shares(found["rows"], key)
        tables.append({"title": title, "rows": rows, "by_work": key in CHARGE_KEYS})
    totals, before = found["totals"], found["totals"]["previous"]
    bars = _bars(days["rows"], (after - first).days, month)
    html = _template().render(
        month=month,
        team=team,
        tz=tz,
        since=first.isoformat(),
        until=after.isoformat() if over else f"{now.astimezone(ZoneInfo(tz)):%Y-%m-%d %H:%M}",
        over=over,
        made=now.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        totals=totals,
        before=before,
        savings=days["savings"],
        bars=bars,
        most=max(Decimal(bar.usd) for bar in bars),
        decimals=decimals_of(max(Decimal(one["full_cost_usd"]) for one in (totals, before))),
        width=_WIDTH,
        height=_HEIGHT,
        tables=tables,
        days=days["rows"],
    )
    return _with_summary(html, month, team, totals, before)


def _with_summary(
    html: str, month: str, team: str | None, totals: dict[str, Any], before: dict[str, Any]
) -> MonthlyReport:
    whose = "all teams" if team is None else f"team {team}"
    hits = totals["cache_hits_exact"] + totals["cache_hits_semantic"]
    facts: dict[str, str | int] = {
        "month": month,
        "scope": "global" if team is None else f"team:{team}",
        "requests": totals["requests"],
        "errors": totals["errors"],
        "cost_usd": totals["cost_usd"],
        "full_cost_usd": totals["full_cost_usd"],
        "previous_full_cost_usd": before["full_cost_usd"],
        "saved_usd": totals["saved_usd"],
    }
    full = dollars(totals["full_cost_usd"])
    return MonthlyReport(
        html=html,
        title=f"Costs of {whose} in {month}: {full}",
        text=f"{dollars(totals['cost_usd'])} for {totals['requests']:,} requests, with idle time "
        f"{full}; the month before {dollars(before['full_cost_usd'])}. {totals['errors']:,} "
        f"failed. {hits:,} came from caches, which avoided {dollars(totals['saved_usd'])}.",
        facts=facts,
    )


async def reported_scopes(
    engine: "AsyncEngine", wanted: Iterable[str], *, month: str, tz: str
) -> list[str]:
    """Of scopes as budgets have them, those with requests in the month; `team:*`: each team."""
    first = datetime.strptime(month, "%Y-%m").date()
    after = (first + timedelta(days=32)).replace(day=1)
    asked: dict[str, Any] = {"since": first.isoformat(), "until": after.isoformat(), "tz": tz}
    rows = await cost_rows(engine, group_by="team", wanted={"counts"}, **asked)
    teams = [f"team:{row['team']}" for row in rows if row["requests"] and row["team"]]
    found: list[str] = []
    for scope in wanted:
        if scope == EVERYBODY and teams:
            found.append(scope)
        elif scope == EVERY_TEAM:
            found += teams
        elif scope in teams:
            found.append(scope)
    return list(dict.fromkeys(found))


def _bars(rows: list[dict[str, Any]], days: int, month: str) -> list[Bar]:
    """One per day, the highest as high as the drawing."""
    costs = {row["day"]: Decimal(row["full_cost_usd"]) for row in rows}
    most = max(costs.values(), default=Decimal(0)) or Decimal(1)
    step = _WIDTH / days
    made = []
    for number in range(days):
        day = f"{month}-{number + 1:02d}"
        usd = costs.get(day, Decimal(0))
        high = float(usd / most) * _HEIGHT
        made.append(Bar(number * step, _HEIGHT - high, step * 0.8, high, day, format(usd, "f")))
    return made


def _shares(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows with their share of the sum, the dearest first, of who was there in either month."""
    total = sum((Decimal(row["cost_usd"]) for row in rows), Decimal(0)) or Decimal(1)
    return [
        {
            **row,
            "name": called(row, key) or f"no {key}",
            "share": float(Decimal(row["cost_usd"]) / total),
            "change": Decimal(row["full_cost_usd"]) - Decimal(row["previous"]["full_cost_usd"]),
        }
        for row in rows
        if any(one["requests"] or Decimal(one["cost_usd"]) for one in (row, row["previous"]))
    ]


@cache
def _template() -> "Template":
    from jinja2 import Environment

    text = files("gateway.insights").joinpath("monthly.html.jinja").read_text(encoding="utf-8")
    found = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"usd": _usd, "dollars": dollars, "change": _change}
    return found.from_string(text)


def _usd(usd: str | Decimal, decimals: int) -> str:
    """With as many decimals as its neighbours."""
    return f"${Decimal(usd):,.{decimals}f}"


def _change(usd: Decimal, decimals: int) -> str:
    return f"{'−' if usd < 0 else '+'}{_usd(abs(usd), decimals)}"
