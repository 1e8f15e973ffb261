"""Reports out of the roll-ups: which buckets answer a period. By user or tag: see
`report_details`.

A period is cut into pieces: whole days, hours and quarters of an hour come from the roll-ups, in
the coarsest buckets that no local hour cuts in two (in India hours from half past to half past);
what is left at both ends, less than a quarter of an hour each, is read from the rows, as is
everything older than the roll-ups.

By local days UTC's are read: each counts in the local day of its noon, and the few hours of it that
lie in another are moved there, taken out of the one and added to the other.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, TypeVar
from zoneinfo import ZoneInfo

from msgspec import Struct
from sqlalchemy import and_, func, select

from gateway.ledger.report_query import CHARGE_KEYS, TIME_KEYS, ReportQuery
from gateway.ledger.rollups import (
    DAY_S,
    DAY_US,
    HALF_PAST_S,
    HALF_S,
    HOUR_S,
    QUARTER_S,
    QUARTER_US,
    bucket_us,
)
from gateway.ledger.tables import machine_time, requests, rollups

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

_R = rollups.c
_PIECES_AT_ONCE = 200
"""SQLite nests no more than 1000 conditions."""


_Part = TypeVar("_Part")


class Piece(Struct, frozen=True):
    """Buckets of one span that lie side by side; unix microseconds, half-open."""

    span_s: int
    from_us: int
    until_us: int


class Plan(Struct, frozen=True, kw_only=True):
    """How a period is answered."""

    buckets: tuple[Piece, ...]
    rows: tuple[tuple[int, int], ...]
    """Periods, unix microseconds, half-open, to be read row by row."""
    moved: tuple[Piece, ...] = ()
    """Of the days among the buckets, what lies in another local day than their noon."""
    spare: tuple[Piece, ...] = ()
    """Of the days among the buckets, what is not asked for, to be taken out."""
    moved_rows: tuple[tuple[int, int], ...] = ()
    """The same as moved, where it has to be read row by row."""
    spare_rows: tuple[tuple[int, int], ...] = ()
    """The same as spare, where it has to be read row by row."""


def batches(pieces: Sequence[_Part]) -> Iterator[tuple[_Part, ...]]:
    """As many at once as a statement may name."""
    for start in range(0, len(pieces), _PIECES_AT_ONCE):
        yield tuple(pieces[start : start + _PIECES_AT_ONCE])


def can_answer(query: ReportQuery) -> bool:
    """Whether roll-ups hold all the keys that the question names."""
    if len(query.dimensions) > 1 and "hour" in query.group_by:
        return False
    return all(  # several values of an ungrouped key: a request may be first in each
        key not in CHARGE_KEYS or key in query.group_by or len(values) == 1
        for key, values in query.filters.items()
    )


def plan(query: ReportQuery, *, rollups_from_us: int, held_us: tuple[int, int]) -> Plan:
    """Cut the query's period into pieces, if it names no user or tag.

    Args:
        rollups_from_us: older rows are in no roll-up.
        held_us: begin of the oldest bucket and of the newest.
    """
    since_us, until_us = query.since_us, query.until_us
    whole = (_ceil(max(since_us, rollups_from_us), QUARTER_US), until_us - until_us % QUARTER_US)
    if not can_answer(query) or whole[0] >= whole[1]:
        return Plan(buckets=(), rows=((since_us, until_us),))
    held = max(whole[0], held_us[0]), min(whole[1], held_us[1] + DAY_US)
    rows = [(since_us, whole[0]), (whole[1], until_us)]
    by_day = "day" in query.group_by and "hour" not in query.group_by
    buckets = tuple(cut(*(held if by_day else whole), spans_s(query, *held)))
    return Plan(
        buckets=buckets,
        rows=tuple((begin, end) for begin, end in rows if begin < end),
        moved=tuple(_moved(query, buckets)) if by_day else (),
    )


def cut(from_us: int, until_us: int, spans_s: Sequence[int]) -> Iterator[Piece]:
    """The widest span in the middle, the next ones on both sides of it."""
    if from_us >= until_us:
        return
    widest_s = spans_s[-1]
    begin = bucket_us(widest_s, from_us - 1) + abs(widest_s) * 1_000_000
    end = bucket_us(widest_s, until_us)
    if begin >= end:
        yield from cut(from_us, until_us, spans_s[:-1])
        return
    yield from cut(from_us, begin, spans_s[:-1])
    yield Piece(widest_s, begin, end)
    yield from cut(end, until_us, spans_s[:-1])


def _moved(query: ReportQuery, buckets: Sequence[Piece]) -> Iterator[Piece]:
    """What of each UTC day lies in the local day before that of its noon, and in the one after."""
    zone = ZoneInfo(query.tz)
    for piece in buckets:
        if piece.span_s != DAY_S:
            continue
        for from_us in range(piece.from_us, piece.until_us, DAY_US):
            day = datetime.fromtimestamp((from_us + DAY_US // 2) // 1_000_000, zone).date()
            begin_us, end_us = (local_midnight_us(day + timedelta(days=n), zone) for n in (0, 1))
            yield from cut(from_us, begin_us, [QUARTER_S, HOUR_S])
            yield from cut(end_us, from_us + DAY_US, [QUARTER_S, HOUR_S])


def local_midnight_us(day: date, zone: ZoneInfo) -> int:
    """When a day begins, unix microseconds."""
    return round(datetime.combine(day, time(), zone).timestamp()) * 1_000_000


def _ceil(at_us: int, span_us: int) -> int:
    return -(-at_us // span_us) * span_us


def spans_s(query: ReportQuery, from_us: int, until_us: int) -> Sequence[int]:
    """The spans whose buckets lie in one local day or hour, if that is asked for, throughout the
    period, widest last; days lie in one but for what is moved."""
    if not set(query.group_by) & set(TIME_KEYS):
        return (QUARTER_S, HOUR_S, DAY_S)
    past_s = past_the_hour_s(query, from_us, until_us)
    if "hour" not in query.group_by:
        return (QUARTER_S, HOUR_S, DAY_S) if past_s == {0} else (QUARTER_S, DAY_S)
    if past_s == {0}:
        return (QUARTER_S, HOUR_S)
    return (QUARTER_S, HALF_PAST_S) if past_s == {HALF_S} else (QUARTER_S,)


def past_the_hour_s(query: ReportQuery, from_us: int, until_us: int) -> set[int]:
    """When local hours begin within UTC's, throughout a period."""
    zone, found = ZoneInfo(query.tz), set()
    for at_us in (*range(from_us, until_us, DAY_US), until_us):
        offset = datetime.fromtimestamp(at_us / 1e6, UTC).astimezone(zone).utcoffset()
        assert offset is not None, "the moment is aware"
        found.add(round(-offset.total_seconds()) % HOUR_S)
    return found


def within(piece: Piece) -> "ColumnElement[bool]":
    """Whether a bucket is one of the piece's."""
    at = _R.bucket_us
    return and_(_R.span_s == piece.span_s, at >= piece.from_us, at < piece.until_us)


async def first_us(connection: "AsyncConnection") -> int | None:
    """When the ledger's first request or its first machine's run began, where rows are pruned up
    to a quarter of an hour later; None: nothing did."""
    oldest = (
        select(func.min(requests.c.started_us)),
        select(func.min(_R.bucket_us) + QUARTER_US).where(_R.span_s == QUARTER_S),
        select(machine_time.c.started_us).order_by(machine_time.c.id).limit(1),
    )  # each is one look into an index
    row = (await connection.execute(select(*(one.scalar_subquery() for one in oldest)))).one()
    return min((at_us for at_us in row if at_us is not None), default=None)


async def held_us(connection: "AsyncConnection") -> tuple[int, int]:
    """Begin of the oldest and of the newest day in the roll-ups."""
    ends = (
        select(of(_R.bucket_us)).where(_R.span_s == DAY_S).scalar_subquery()
        for of in (func.min, func.max)
    )  # apart: each is one look into the index
    oldest, newest = (await connection.execute(select(*ends))).one()
    return oldest or 0, newest or 0
