"""The month's bill: who pays what, what nobody used, what the invoice says beside that.

A bill's lines are the teams' charges, what the machines cost beside them by category (idle,
start-up, loading, lost work, unattributed), and the adjustments posted for the month:
discounts and differences. Once an invoice is reconciled they sum to it, to the last nano-dollar.

Months are UTC's. Closing one freezes it: charges that turn up later are booked at the first moment
of the open period, adjustments post to the open month, and both name what they correct.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import func, insert, or_, select

from gateway.ledger import state, subjects
from gateway.ledger.audit import Act, record
from gateway.ledger.database import writing
from gateway.ledger.machine_costs import CATEGORIES
from gateway.ledger.money import parse_usd, usd_text
from gateway.ledger.report_query import ReportError
from gateway.ledger.reports import costs_report
from gateway.ledger.rollups import DAY_S
from gateway.ledger.rows import to_us
from gateway.ledger.subjects import Subject
from gateway.ledger.tables import adjustments, closings, machine_time, rollups
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

EVERYTHING = "all"
_POSTED = ("discount", "difference")
_MONTH = re.compile(r"^(\d{4})-(\d{2})$")


class Line(Struct, frozen=True, kw_only=True):
    """One line of a bill."""

    kind: str
    """team, idle, startup, loading, lost_work, unattributed, discount or difference."""
    name: str
    """The team, or whose invoice an adjustment is about."""
    nano_usd: int
    note: str = ""
    hours: str = ""
    """Of machines, where it is their time; a decimal number."""


class Bill(Struct, frozen=True, kw_only=True):
    """A month as it is to be paid."""

    month: str
    lines: tuple[Line, ...]
    closed_at: float | None = None
    """Unix seconds; None: still open."""

    @property
    def total_nano_usd(self) -> int:
        """Of all lines."""
        return sum(line.nano_usd for line in self.lines)

    def shown(self) -> dict[str, Any]:
        """For JSON: amounts as decimal strings."""
        return {
            "month": self.month,
            "closed_at": self.closed_at,
            "lines": [
                {
                    "kind": line.kind,
                    "name": line.name,
                    "usd": usd_text(line.nano_usd),
                    "note": line.note,
                    "hours": line.hours or None,
                }
                for line in self.lines
            ],
            "total_usd": usd_text(self.total_nano_usd),
        }


def bounds(month: str) -> tuple[datetime, datetime]:
    """A month's begin and end. Raises ReportError for what is none."""
    found = _MONTH.match(month)
    year, number = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1970 <= year < 9998 and 1 <= number <= 12):
        raise ReportError(f"month {month!r}; give YYYY-MM, such as 2026-11")
    after = (year, number + 1) if number < 12 else (year + 1, 1)
    return datetime(year, number, 1, tzinfo=UTC), datetime(*after, 1, tzinfo=UTC)


async def bill(engine: "AsyncEngine", settings: Settings, month: str) -> Bill:
    """The bill of a month: as it was closed, else as it stands now.

    Raises:
        ReportError: that is no month.
    """
    bounds(month)
    async with engine.connect() as connection:
        closed = await _closed(connection, month)
        return closed or await _standing(connection, engine, settings, month)


async def close(
    engine: "AsyncEngine", settings: Settings, month: str, *, now: float, by: str = ""
) -> Bill:
    """Freeze a month, and with it all before: of those that nobody closed, too, the bill is kept.

    Args:
        by: who does it, for the audit log.

    Raises:
        ReportError: it is not over yet, or closed already.
    """
    _, end = bounds(month)
    if now < end.timestamp():
        raise ReportError(f"{month} is not over; it can be closed from {end.isoformat()} on")
    async with writing(engine) as connection:
        await state.hold_writers(connection)
        until_us = await state.read(connection, "closed_until")
        if to_us(end.timestamp()) <= until_us:
            raise ReportError(f"{month} is closed already")
        earlier = await _first_month(connection, until_us, month)
        while earlier < month:
            before = await _standing(connection, engine, settings, earlier)
            if before.lines:
                await _freeze(connection, before, now)
            earlier = bounds(earlier)[1].strftime("%Y-%m")
        frozen = await _standing(connection, engine, settings, month)
        await _freeze(connection, frozen, now)
        await state.write(connection, "closed_until", to_us(end.timestamp()))
        total = {"total_usd": usd_text(frozen.total_nano_usd)}
        await record(connection, Act(actor=by, action="months.close", target=month, details=total))
    return replace(frozen, closed_at=now)


async def _first_month(connection: "AsyncConnection", closed_until_us: int, month: str) -> str:
    """The first open month; `month` if there is nothing before it."""
    if closed_until_us:
        return _month_of(closed_until_us)
    c = rollups.c
    first = select(func.min(c.bucket_us)).where(c.span_s == DAY_S, c.bucket_us >= 0)
    began = select(func.min(machine_time.c.started_us))
    found = [(await connection.execute(wanted)).scalar() for wanted in (first, began)]
    return min([month, *(_month_of(at_us) for at_us in found if at_us is not None)])


async def _freeze(connection: "AsyncConnection", bill: Bill, now: float) -> None:
    lines = msgspec.to_builtins(await _with_ids(connection, bill.lines))
    values = {"month": bill.month, "closed_us": to_us(now), "bill": lines}
    await connection.execute(insert(closings).values(**values))


async def _standing(
    connection: "AsyncConnection", engine: "AsyncEngine", settings: Settings, month: str
) -> Bill:
    """The bill of an open month as it stands now."""
    charged = await _charged(engine, settings, month)
    return Bill(month=month, lines=(*charged, *await _adjustments(connection, month)))


async def reconcile_invoice(
    engine: "AsyncEngine",
    settings: Settings,
    month: str,
    *,
    invoice_nano_usd: int,
    discount_nano_usd: int = 0,
    payee: str = EVERYTHING,
    note: str = "",
    now: float,
    by: str = "",
) -> dict[str, Any]:
    """Post what an invoice says beyond the charges: its discount and the difference.

    Said again with the same invoice it posts nothing new.

    Args:
        invoice_nano_usd: what is to be paid, 0 or more.
        discount_nano_usd: what the invoice takes off, 0 or more.
        payee: whose invoice: `upstream:BACKEND`, or `all` for everything, what was posted for
            upstreams included.
        by: who does it, for the audit log.

    Raises:
        ReportError: no such month or payee, or a negative amount.
    """
    for name, nano_usd in (("invoice", invoice_nano_usd), ("discount", discount_nano_usd)):
        if nano_usd < 0:
            raise ReportError(f"{name} ${usd_text(nano_usd)}; allowed: 0 or more")
    bounds(month)
    expected = await _expected(engine, settings, month, payee)
    async with writing(engine) as connection:
        await state.hold_writers(connection)
        open_month = await _open_month(connection, month)
        posted = await _adjustments(connection, month, about=True)
        before = [line for line in posted if line.name == payee]
        if payee == EVERYTHING:  # it contains what was posted for single upstreams
            expected += sum(line.nano_usd for line in posted if line.name != payee)
        discounted = sum(line.nano_usd for line in before if line.kind == "discount")
        differing = sum(line.nano_usd for line in before if line.kind == "difference")
        amounts = {
            "discount": -discount_nano_usd - discounted,
            "difference": invoice_nano_usd + discount_nano_usd - expected - differing,
        }
        rows = [
            {
                "month": open_month,
                "kind": kind,
                "payee": payee,
                "nano_usd": amount,
                "note": note,
                "posted_us": to_us(now),
                "corrects": None if open_month == month else month,
            }
            for kind, amount in amounts.items()
            if amount
        ]
        if rows:
            await connection.execute(insert(adjustments), rows)
            details = {"payee": payee, "invoice_usd": usd_text(invoice_nano_usd)}
            await record(
                connection,
                Act(actor=by, action="invoices.reconcile", target=month, details=details),
            )
    return {
        "month": month,
        "payee": payee,
        "expected_usd": usd_text(expected),
        "discount_usd": usd_text(-discount_nano_usd),
        "difference_usd": usd_text(invoice_nano_usd + discount_nano_usd - expected),
        "invoice_usd": usd_text(invoice_nano_usd),
        "posted_to": open_month,
        "posted": len(rows),
    }


async def _expected(engine: "AsyncEngine", settings: Settings, month: str, payee: str) -> int:
    """What the ledger says that a payee will ask for."""
    if payee == EVERYTHING:
        lines = (await bill(engine, settings, month)).lines
        return sum(line.nano_usd for line in lines if line.kind not in _POSTED)
    kind, _, name = payee.partition(":")
    if kind != "upstream" or not name:
        raise ReportError(f"payee {payee!r}; allowed: {EVERYTHING}, upstream:BACKEND")
    begin, end = bounds(month)
    found = await costs_report(
        engine,
        settings,
        group_by="machine",
        since=begin.isoformat(),
        until=end.isoformat(),
        filters={"backend": [name]},
    )
    charged = [parse_usd(row["cost_usd"]) for row in found["rows"] if row["machine"] is None]
    if not charged and name not in {backend.name for backend in settings.backends}:
        raise ReportError(f"payee {payee!r}: no such backend, and none was charged for in {month}")
    return sum(charged)


async def _charged(engine: "AsyncEngine", settings: Settings, month: str) -> list[Line]:
    """Teams' charges and what the machines cost beside them."""
    begin, end = bounds(month)
    found = await costs_report(
        engine, settings, group_by="team", since=begin.isoformat(), until=end.isoformat()
    )
    lines = [
        Line(kind="team", name=str(row["team"]), nano_usd=parse_usd(row["cost_usd"]))
        for row in found["rows"]
    ]
    beside = {kind: found["idle_breakdown"][kind] for kind in CATEGORIES}
    beside["unattributed"] = found["unattributed_cost_usd"]
    hours = {
        kind: str(sum(Decimal(machine[f"{kind}_hours"]) for machine in found["machines"]))
        for kind in CATEGORIES
    }
    lines += [
        Line(kind=kind, name="", nano_usd=parse_usd(amount), hours=hours.get(kind, ""))
        for kind, amount in beside.items()
    ]
    return [line for line in lines if line.nano_usd]


async def _closed(connection: "AsyncConnection", month: str) -> Bill | None:
    wanted = select(closings).where(closings.c.month == month)
    row = (await connection.execute(wanted)).first()
    if row is None:
        return None
    lines = msgspec.convert(row.bill, tuple[Line, ...])
    names = await subjects.names_of(connection, (one.name for one in lines if one.kind == "team"))
    return Bill(
        month=month,
        lines=tuple(
            replace(one, name=subjects.shown(one.name, names)) if one.kind == "team" else one
            for one in lines
        ),
        closed_at=row.closed_us / 1_000_000,
    )


async def _with_ids(connection: "AsyncConnection", lines: tuple[Line, ...]) -> tuple[Line, ...]:
    """The lines with ids in place of teams' names, so that a closed bill forgets them too."""
    teams: list[Subject] = [("team", line.name) for line in lines if line.kind == "team"]
    ids = await subjects.find_ids(connection, teams)
    return tuple(
        replace(line, name=ids.get(("team", line.name), line.name)) if line.kind == "team" else line
        for line in lines
    )


async def _adjustments(
    connection: "AsyncConnection", month: str, *, about: bool = False
) -> list[Line]:
    """Lines posted to a month, or those about it, in whichever month they stand."""
    c = adjustments.c
    wanted = select(adjustments).order_by(c.id)
    if about:
        wanted = wanted.where(or_(c.corrects == month, (c.month == month) & c.corrects.is_(None)))
    else:
        wanted = wanted.where(c.month == month)
    return [
        Line(
            kind=row.kind,
            name=row.payee,
            nano_usd=row.nano_usd,
            note=f"corrects {row.corrects}. {row.note}".strip() if row.corrects else row.note,
        )
        for row in await connection.execute(wanted)
    ]


async def _open_month(connection: "AsyncConnection", month: str) -> str:
    """The month itself, or the first open one."""
    return max(month, _month_of(await state.read(connection, "closed_until")))


def _month_of(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).strftime("%Y-%m")
