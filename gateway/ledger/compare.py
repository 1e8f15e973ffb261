"""A cost report beside the one of another period."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from gateway.ledger.report_query import TIME_KEYS, ReportError, ReportQuery, parse_query
from gateway.ledger.reports import costs_report
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

PREVIOUS = "previous"
_OF_REPORTS = ("idle_by", "against")
"""What a report is asked beside its rows and its period."""
_ALLOWED = f"{PREVIOUS} or SINCE..UNTIL, such as 2026-10-01..2026-11-01"


async def compared_report(
    engine: "AsyncEngine",
    settings: Settings,
    *,
    compare: str,
    now: datetime | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """`costs_report`; each row also has `previous` (its figures then) and `cost_change_usd`.

    Rows that only the other period has stand at the end, with zeros.

    Args:
        compare: previous (the same length before `since`; whole months by whole months), or
            SINCE..UNTIL.
        asked: as costs_report takes it.

    Raises:
        ReportError: no such period, no `since`, or groups by time, which nothing is beside.
    """
    now = now or datetime.now(UTC)
    query = parse_query(now=now, **{k: v for k, v in asked.items() if k not in _OF_REPORTS})
    times = [key for key in query.group_by if key in TIME_KEYS]
    if times:
        raise ReportError(f"compare: group by {times[0]} has no counterpart in another period")
    since, until = _previous(query) if compare == PREVIOUS else _period(compare, query, now)
    found, before = await asyncio.gather(
        costs_report(engine, settings, now=now, **asked),
        costs_report(engine, settings, now=now, **{**asked, "since": since, "until": until}),
    )
    figures = list(found["totals"])
    keys = found["group_by"]
    then = {tuple(row[key] for key in keys): row for row in before["rows"]}
    nothing = {name: _zero(found["totals"][name]) for name in figures}
    rows = [_beside(row, then.pop(tuple(row[k] for k in keys), nothing), figures)
            for row in found["rows"]]  # fmt: skip
    for group, row in then.items():
        rows.append(_beside({**dict(zip(keys, group, strict=True)), **nothing}, row, figures))
    found["rows"] = rows
    found["totals"] = _beside(found["totals"], before["totals"], figures)
    found["compare"] = {"since": before["since"], "until": before["until"]}
    return found


def _beside(row: dict[str, Any], then: dict[str, Any], figures: list[str]) -> dict[str, Any]:
    change = Decimal(row["cost_usd"]) - Decimal(then["cost_usd"])
    return {
        **row,
        "previous": {name: then[name] for name in figures},
        "cost_change_usd": format(change, "f"),
    }


def _zero(value: Any) -> Any:
    return "0" if isinstance(value, str) else 0 if isinstance(value, int) else None


def _previous(query: ReportQuery) -> tuple[str, str]:
    if query.since is None:
        raise ReportError("compare previous needs --since: how long is the period?")
    zone = ZoneInfo(query.tz)
    since, until = query.since.astimezone(zone), query.until.astimezone(zone)
    if _begins_month(since) and _begins_month(until):
        months = (until.year - since.year) * 12 + until.month - since.month
        year, month = divmod(since.year * 12 + since.month - 1 - months, 12)
        before = since.replace(year=year, month=month + 1)
    elif _midnight(since) and _midnight(until):
        before = since - (until.replace(tzinfo=None) - since.replace(tzinfo=None))
    else:
        before = query.since - (query.until - query.since)
    return before.isoformat(), query.since.isoformat()


def _midnight(moment: datetime) -> bool:
    return (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0)


def _begins_month(moment: datetime) -> bool:
    return moment.day == 1 and _midnight(moment)


def _period(text: str, query: ReportQuery, now: datetime) -> tuple[str, str]:
    since, dots, until = text.partition("..")
    if not (since and dots and until):
        raise ReportError(f"compare {text!r}; allowed: {_ALLOWED}")
    parse_query(since=since, until=until, tz=query.tz, now=now)
    return since, until
