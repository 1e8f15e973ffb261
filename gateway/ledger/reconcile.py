"""`report reconcile`: hour by hour, does what was measured agree with what was charged?

Machine time, idle time and charges come from three places (the supervisor, the engines' clocks, the
engines' steps by way of the journal), so an hour in which they do not add up names what went wrong
by its sign: more machine than charges and idle is a lost charge or a silent engine, less is
something counted twice. Beside it stands what each engine says it worked, against what was charged
for it: that tells which of them it is.

A charge that is gone is noticed, however small, by the roll-ups: these were written with it, and a
difference to the rows is named by hour and backend, to the nano-dollar, upstreams' included.

A request is charged in the hour in which it ended, so long ones shift a little from one hour to the
next; the tolerance is for them.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from gateway.ledger import state
from gateway.ledger.machine_costs import MachineCost, costs_between, known_machines
from gateway.ledger.machine_prices import PricedMachine
from gateway.ledger.machine_report import (
    MOST_BEHIND_US,
    Interval,
    machine_intervals,
    measured_until_us,
)
from gateway.ledger.money import EXACT, usd_text
from gateway.ledger.report_lines import lines_of, snapshot
from gateway.ledger.report_query import ReportError, ReportQuery, parse_query
from gateway.ledger.report_sql import BUCKET_US, FromRows
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

DEFAULT_TOLERANCE = Decimal("0.01")
_HOUR = timedelta(hours=1)
_US = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Charges = Mapping[tuple[str, str], Mapping[str, int]]
"""(hour, machine) → backend → nano-dollars"""
Charged = tuple[str, str, str | None]
"""(hour, backend, machine)"""


async def reconcile_hours(
    engine: "AsyncEngine",
    settings: Settings,
    *,
    since: str | None = None,
    until: str | None = None,
    tz: str = "UTC",
    tolerance: Decimal = DEFAULT_TOLERANCE,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Every hour of every machine that ran, and those whose difference is too large.

    Args:
        until: the hour it cuts is judged by its part, each machine's as far as it is measured yet;
            None: the last hour that has ended.
        tolerance: share of the hour's machine cost that may be unattributed.

    Raises:
        ReportError: a question that cannot be answered.
        SQLAlchemyError: the database does not answer.
    """
    if not (tolerance.is_finite() and 0 <= tolerance <= 1):
        raise ReportError(f"tolerance {tolerance} is not a share from 0 to 1")
    now = now or datetime.now(UTC)
    ended = now.replace(minute=0, second=0, microsecond=0)
    query = parse_query(since=since, until=until or ended.isoformat(), tz=tz, now=now)
    async with snapshot(engine) as connection:
        pruned_us = await state.read(connection, "pruned_until")
        if pruned_us > query.since_us:  # older charges may be gone, machine time is not
            query = replace(query, since=_EPOCH + timedelta(microseconds=pruned_us))
        machines = await known_machines(connection, settings)
        measured = await machine_intervals(connection, query.since_us, query.until_us)
        names = {priced.machine.name for priced in machines}
        known_us = _known_until(names, measured, query, _us(now))
        booked = {
            until_us: await _of_rows(connection, query, until_us)
            for until_us in {query.until_us, *known_us.values()}
        }
        changed = await _changed(connection, query, booked[query.until_us])
    charged = _charged(booked, query, known_us)
    rows = _rows(machines, measured, query, charged, known_us)
    for row in rows:
        row["ok"] = _agrees(row, tolerance)
    return {
        "since": None if query.since is None else query.since.isoformat(),
        "until": query.until.isoformat(),
        "tz": query.tz,
        "tolerance": format(tolerance, "f"),
        "hours": rows,
        "changed": changed,
        "bad_hours": sorted(
            {*(row["hour"] for row in rows if not row["ok"]), *(row["hour"] for row in changed)}
        ),
        "ok": not changed and all(row["ok"] for row in rows),
    }


def _known_until(
    machines: Set[str], measured: Mapping[str, Sequence[Interval]], query: ReportQuery, now_us: int
) -> dict[str, int]:
    """By machine, until when it is measured, where that is before the period ends: measurements
    are written some seconds later than charges."""
    if now_us - query.until_us >= MOST_BEHIND_US:
        return {}
    ends = {name: measured_until_us(measured.get(name, ()), query.until_us) for name in machines}
    return {name: max(us, query.since_us) for name, us in ends.items() if us < query.until_us}


def _charged(
    booked: Mapping[int, Mapping[Charged, int]], query: ReportQuery, known_us: Mapping[str, int]
) -> Charges:
    """What the machines' rows sum to, each as far as it is measured.

    Args:
        booked: the rows' sums by until when, unix microseconds.
    """
    found: dict[tuple[str, str], dict[str, int]] = {}
    for until_us, rows in booked.items():
        for (hour, backend, machine), cost in rows.items():
            if cost and machine is not None and known_us.get(machine, query.until_us) == until_us:
                found.setdefault((hour, machine), {})[backend] = cost
    return found


async def _of_rows(
    connection: "AsyncConnection", query: ReportQuery, until_us: int
) -> dict[Charged, int]:
    """Out of the rows themselves: roll-ups would not miss a charge that has gone."""
    zone = ZoneInfo(query.tz)
    by_hour = replace(query, group_by=("hour", "backend"))
    source = FromRows(by_hour, [(query.since_us, until_us)])
    found: dict[Charged, int] = {}
    for quarter, backend, machine, cost, *_ in await connection.execute(source.costs()):
        at = datetime.fromtimestamp(int(quarter) * BUCKET_US // 1_000_000, zone)
        of = (at.replace(minute=0).isoformat(), backend, machine)
        found[of] = found.get(of, 0) + int(cost)
    return found


async def _changed(
    connection: "AsyncConnection", query: ReportQuery, booked: Mapping[Charged, int]
) -> list[dict[str, Any]]:
    """Where the rows say something else than the sums that were written with them."""
    by_machine = replace(query, group_by=("hour", "backend", "machine"))
    lines = await lines_of(connection, by_machine, {"costs"})
    sums = {group: line.cost for group, line in lines.items()}
    rows: dict[Any, int] = {**booked}
    return [
        {
            "hour": hour,
            "backend": backend,
            "machine": machine,
            "charged_usd": usd_text(rows.get((hour, backend, machine), 0)),
            "summed_usd": usd_text(sums.get((hour, backend, machine), 0)),
        }
        for hour, backend, machine in sorted({*rows, *sums}, key=str)
        if rows.get((hour, backend, machine), 0) != sums.get((hour, backend, machine), 0)
    ]


def _rows(
    machines: Iterable[PricedMachine],
    measured: Mapping[str, Sequence[Interval]],
    query: ReportQuery,
    charged: Charges,
    known_us: Mapping[str, int],
) -> list[dict[str, Any]]:
    """By hour and machine: all that ran or was charged."""
    zone = ZoneInfo(query.tz)
    rows = []
    for machine in machines:
        named = machine.machine.name
        intervals = measured.get(named, ())
        hours = {hour for hour, name in charged if name == named}
        edges_us = _edges(query, intervals, hours, known_us.get(named, query.until_us))
        costs = costs_between(machine, intervals, edges_us)
        for begin_us, cost in zip(edges_us, costs, strict=False):
            begin = (_EPOCH + timedelta(microseconds=begin_us)).astimezone(zone)
            hour = begin.replace(minute=0, second=0, microsecond=0).isoformat()
            by_backend = charged.get((hour, named), {})
            if cost.run_ns or by_backend:
                rows.append(_row(hour, cost, by_backend))
    return sorted(rows, key=lambda row: (row["hour"], row["machine"]))


def _edges(
    query: ReportQuery, intervals: Sequence[Interval], hours: set[str], until_us: int
) -> list[int]:
    """Begins of hours, from the first to the last that anything is known of, cut by the period."""
    known = [us for i in intervals for us in (i.started_us, i.ended_us)]
    known += [_us(datetime.fromisoformat(hour)) for hour in hours]
    known += [_us(datetime.fromisoformat(hour) + _HOUR) for hour in hours]
    if not known:
        return [0]
    first = max(min(known), query.since_us)
    last = min(max(known), until_us)
    hour_us = _HOUR // _US
    # Hours of every zone begin on whole quarters, but reports count whole local hours.
    offset_us = _offset_us(query, first) % hour_us
    begin = first - (first + offset_us) % hour_us
    edges = range(begin, last, hour_us)
    return sorted({max(first, edge) for edge in edges} | {last}) if last > first else [0]


def _offset_us(query: ReportQuery, at_us: int) -> int:
    at = (_EPOCH + timedelta(microseconds=at_us)).astimezone(ZoneInfo(query.tz))
    return (at.utcoffset() or timedelta()) // _US


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // _US


def _row(hour: str, cost: MachineCost, by_backend: Mapping[str, int]) -> dict[str, Any]:
    charged = sum(by_backend.values())
    busy = cost.busy_by_backend
    return {
        "hour": hour,
        **cost.shown(charged),
        "engines": [
            {
                "backend": backend,
                "measured_usd": usd_text(busy.get(backend, 0)),
                "charged_usd": usd_text(by_backend.get(backend, 0)),
            }
            for backend in sorted({*busy, *by_backend})
        ],
    }


def _agrees(row: Mapping[str, Any], tolerance: Decimal) -> bool:
    allowed = EXACT.multiply(Decimal(row["cost_usd"]), tolerance)
    return abs(Decimal(row["unattributed_usd"])) <= allowed
