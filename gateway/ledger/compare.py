"""A cost report beside the one of another period."""

import asyncio
from calendar import monthrange
from datetime import UTC, datetime, timedelta
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
        compare: previous, or SINCE..UNTIL. Before a period that is over comes the same length,
            before whole months as many; without `until`, as much of the month, or of the days.
        asked: as costs_report takes it.

    Raises:
        ReportError: no such period, no `since`, or groups by time, which nothing is beside.
    """
    now = now or datetime.now(UTC)
    query = parse_query(now=now, **{k: v for k, v in asked.items() if k not in _OF_REPORTS})
    times = [key for key in query.group_by if key in TIME_KEYS]
    if times:
        raise ReportError(f"compare: group by {times[0]} has no counterpart in another period")
    if compare != PREVIOUS:
        since, until = _period(compare, query, now)
    elif query.since is None:
        raise ReportError("compare previous needs --since: how long is the period?")
    elif asked.get("until") is None:
        since, until = _as_far(query.since, query.until, ZoneInfo(query.tz))
    else:
        since, until = _before(query.since, query.until, ZoneInfo(query.tz))
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
    for row in then.values():
        named = {key: row[key] for key in (*keys, "key_name") if key in row}
        rows.append(_beside({**named, **nothing}, row, figures))
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


def _before(since: datetime, until: datetime, zone: ZoneInfo) -> tuple[str, str]:
    """As long, up to the period's begin."""
    begin, end = since.astimezone(zone), until.astimezone(zone)
    if _begins_month(begin) and _begins_month(end):
        before = _months_back(begin, _months(begin, end))
    elif _midnight(begin) and _midnight(end):
        before = begin - _on_the_clock(begin, end)
    else:
        before = since - (until - since)
    return before.isoformat(), since.isoformat()


def _as_far(since: datetime, until: datetime, zone: ZoneInfo) -> tuple[str, str]:
    """Of a period that still runs: the one before up to the same time of its day, so that a morning
    stands beside a morning, and the first of a month beside the first of the last."""
    begin, end = since.astimezone(zone), until.astimezone(zone)
    if _begins_month(begin):
        months = _months(begin, end) + 1
        then = _months_back(begin, months), _months_back(end, months)
    else:
        days = timedelta(days=-(-_on_the_clock(begin, end) // timedelta(days=1)))
        then = begin - days, end - days
    return then[0].isoformat(), then[1].isoformat()


def _months(begin: datetime, end: datetime) -> int:
    return (end.year - begin.year) * 12 + end.month - begin.month


def _months_back(moment: datetime, months: int) -> datetime:
    """The same day and time of an earlier month; its end where it has no such day."""
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    last = monthrange(year, month + 1)[1]
    if moment.day <= last:
        return moment.replace(year=year, month=month + 1)
    day = datetime(year, month + 1, last, tzinfo=moment.tzinfo)
    return day + timedelta(days=1)


def _on_the_clock(begin: datetime, end: datetime) -> timedelta:
    """By the clock on the wall: days of 23 and 25 hours are days."""
    return end.replace(tzinfo=None) - begin.replace(tzinfo=None)


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
