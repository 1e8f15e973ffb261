"""Reports by `user`, or by one tag: which buckets of the details answer a period, and their sums.

Details are of half hours and of UTC days; sets of several, of days and months. Where a period
begins or ends within a day, or a part of a day lies in another local day than its noon, that day is
taken whole and its half hours put it right: those outside of the period are taken out, those of
another local day are moved. A day of which most would be put right is added up from its half hours
alone, as hours are. A month of which most days are asked for is taken whole, and the other days are
taken out. Rows are read for less than half an hour at an end, where a zone's days begin at a
quarter, and where there are no details.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import JSON, Select, Subquery, case, cast, func, null, select, type_coerce

from gateway.ledger.report_query import TIME_KEYS, ReportQuery
from gateway.ledger.report_rollups import (
    Piece,
    Plan,
    cut,
    local_midnight_us,
    past_the_hour_s,
    spans_s,
)
from gateway.ledger.rollups import (
    DAY_S,
    DAY_US,
    HALF_S,
    HALF_US,
    HOUR_S,
    HOUR_US,
    MONTH_S,
    QUARTER_S,
    QUARTER_US,
    SET,
    SET_SPANS_S,
    SUMS,
    bucket_us,
    dimension_id,
    key_id,
    month_end_us,
)
from gateway.ledger.tables import (
    charges,
    requests,
    rollup_details,
    rollup_keys,
    rollup_values,
)

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

_D, _K, _V = rollup_details.c, rollup_keys.c, rollup_values.c
_BUCKETS_AT_ONCE = 10_000
"""A statement takes at most 32,766 parameters."""
Period = tuple[int, int]
"""Unix microseconds, half-open."""


class Held(Struct, frozen=True, kw_only=True):
    """What there is, unix microseconds."""

    days_from_us: int
    """Older rows are in no details."""
    halves_from_us: int
    """Older details are of days only."""
    months_from_us: int
    """Older months are in no details."""
    rows_us: Period
    """Begin of the oldest and end of the newest that there is in the rows."""


def plan_details(query: ReportQuery, held: Held) -> Plan:
    """Cut the query's period into whole UTC days, half hours and rows."""
    since_us, until_us = query.since_us, query.until_us
    begin_us = -(-since_us // QUARTER_US) * QUARTER_US  # a request counts once in each quarter
    end_us = until_us - until_us % QUARTER_US
    fits = _fits(query, held.rows_us)
    if begin_us >= end_us or ("hour" in query.group_by and not fits):
        return Plan(buckets=(), rows=((since_us, until_us),))
    if "hour" in query.group_by:
        halves, rows = _halves([(since_us, until_us)], held)
        return Plan(buckets=halves, rows=rows)
    first_us = max(
        bucket_us(DAY_S, max(begin_us, held.rows_us[0])), _ceil(held.days_from_us, DAY_US)
    )
    last_us = min(end_us, held.rows_us[1])
    parts = [(since_us, begin_us), (begin_us, min(first_us, end_us)), (end_us, until_us)]
    moved: list[Period] = []
    spare: list[Period] = []
    days: list[int] = []
    for day_us in range(first_us, last_us, DAY_US):
        asked = (max(day_us, begin_us), min(day_us + DAY_US, end_us))
        core = _of_noon(query, day_us, asked)
        outside = [*_left(asked, core), (day_us, asked[0]), (asked[1], day_us + DAY_US)]
        if _length(outside, held.rows_us) >= _length([asked], held.rows_us):
            parts.append(asked)
        else:
            days.append(day_us)
            moved += outside[:-2]
            spare += outside[-2:]
    halves, rows = _halves(parts, held) if fits else ((), tuple(_joined(parts, held.rows_us)))
    moved_halves, moved_rows = _halves(moved, held)
    spare_halves, spare_rows = _halves(spare, held)
    months, days, spare_days = _months(query, days, held)
    return Plan(
        buckets=(*months, *_pieces(days), *halves),
        rows=rows,
        moved=moved_halves,
        moved_rows=moved_rows,
        spare=(*_pieces(spare_days), *spare_halves),
        spare_rows=spare_rows,
    )


def _months(
    query: ReportQuery, days: Sequence[int], held: Held
) -> tuple[list[Piece], list[int], list[int]]:
    """Months that are cheaper than their days, the days of the others, and the days to be taken out
    of those months."""
    if set(query.group_by) & set(TIME_KEYS):
        return [], [*days], []
    months: list[Piece] = []
    left: list[int] = []
    spare: list[int] = []
    for begin_us, group in groupby(days, partial(bucket_us, MONTH_S)):
        asked, end_us = list(group), month_end_us(begin_us)
        begun_us = bucket_us(DAY_S, max(begin_us, held.rows_us[0]))
        others = sorted({*range(begun_us, min(end_us, held.rows_us[1]), DAY_US)} - {*asked})
        if begin_us < held.months_from_us or len(others) + 1 >= len(asked):
            left += asked
        else:
            months.append(Piece(MONTH_S, begin_us, end_us))
            spare += others
    return months, left, spare


def _fits(query: ReportQuery, rows_us: Period) -> bool:
    """Whether no half hour lies in two local hours, if time is asked for."""
    begin_us, end_us = max(query.since_us, rows_us[0]), min(query.until_us, rows_us[1])
    asked = set(query.group_by) & set(TIME_KEYS)
    return not asked or past_the_hour_s(query, begin_us, end_us) <= {0, HALF_S}


def _halves(periods: Iterable[Period], held: Held) -> tuple[tuple[Piece, ...], tuple[Period, ...]]:
    """Whole half hours, and what is left of the periods, to be read row by row."""
    oldest, newest = held.rows_us
    pieces: list[Piece] = []
    rows: list[Period] = []
    for begin, end in _joined(periods, held.rows_us):
        first = bucket_us(HALF_S, oldest) if begin <= oldest else _ceil(begin, HALF_US)
        first = max(first, held.halves_from_us)
        last = _ceil(newest, HALF_US) if newest <= end else bucket_us(HALF_S, end)
        if first < last:
            pieces.append(Piece(HALF_S, first, last))
            rows += [(begin, first), (last, end)]
        else:
            rows.append((begin, end))
    return tuple(pieces), tuple(_joined(rows, held.rows_us))


def rollups_of(query: ReportQuery, pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The roll-ups' buckets of the same time, of which none lies in two local hours or days."""
    found: list[Piece] = []
    for piece in pieces:
        if piece.span_s in SET_SPANS_S:
            found.append(_by_days(piece))
        elif "hour" in query.group_by:
            fit = spans_s(query, piece.from_us, piece.until_us)
            found += cut(piece.from_us, piece.until_us, fit)
        else:
            found += cut(piece.from_us, piece.until_us, (QUARTER_S, HOUR_S))
    return tuple(found)


def _of_noon(query: ReportQuery, day_us: int, asked: Period) -> Period:
    """What of a UTC day counts in the local day of its noon, if days are asked for."""
    if "day" not in query.group_by:
        return asked
    zone = ZoneInfo(query.tz)
    day = datetime.fromtimestamp((day_us + DAY_US // 2) // 1_000_000, zone).date()
    begin_us, end_us = (local_midnight_us(day + timedelta(days=n), zone) for n in (0, 1))
    core = max(asked[0], begin_us), min(asked[1], end_us)
    return core if core[0] < core[1] else (asked[0], asked[0])


def _left(whole: Period, core: Period) -> list[Period]:
    return [(whole[0], core[0]), (core[1], whole[1])]


def _length(periods: Iterable[Period], rows_us: Period) -> int:
    """How long there are rows in them."""
    return sum(max(min(end, rows_us[1]) - max(begin, rows_us[0]), 0) for begin, end in periods)


def _joined(periods: Iterable[Period], rows_us: Period) -> Iterator[Period]:
    """In order, without what holds no row; what lies side by side as one."""
    last: Period | None = None
    for begin, end in sorted(periods):
        if _length([(begin, end)], rows_us) == 0:
            continue
        if last is not None and last[1] == begin:
            last = last[0], end
            continue
        if last is not None:
            yield last
        last = begin, end
    if last is not None:
        yield last


def _pieces(days: Iterable[int]) -> Iterator[Piece]:
    for begin, end in _joined(((day, day + DAY_US) for day in days), (-(2**62), 2**62)):
        yield Piece(DAY_S, begin, end)


def _by_days(piece: Piece) -> Piece:
    return replace(piece, span_s=DAY_S) if piece.span_s == MONTH_S else piece


def _ceil(at_us: int, span_us: int) -> int:
    return -(-at_us // span_us) * span_us


async def rows_us(connection: "AsyncConnection") -> Period:
    """Begin of the oldest and end of the newest request or charge; (0, 0): there is none."""
    times = requests.c.started_us, charges.c.at_us
    ends = [select(of(at)).scalar_subquery() for of in (func.min, func.max) for at in times]
    found = (await connection.execute(select(*ends))).one()  # each is one look into an index
    oldest, newest = ([at for at in two if at is not None] for two in (found[:2], found[2:]))
    return (min(oldest), max(newest) + 1) if oldest else (0, 0)


def by_value(
    query: ReportQuery,
    dimensions: Sequence[str],
    pieces: Iterable[Piece],
    dialect: str,
    *,
    facts: Iterable[str],
    told: Iterable[str],
    sums: Iterable[str],
) -> Iterator[Select[Any]]:
    """What the details hold of buckets, by what the query groups and filters by; only of requests
    that have all of the dimensions.

    Args:
        dimensions: some of the query's.
        facts: request, charge or both.
        told: keys that tell how to count, so that they are grouped by, too.
        sums: the wanted ones of SUMS.

    Returns:
        The time as a quarter of an hour, every key, every sum, NULL, the value of each dimension;
        NULL for what is not asked for. Of several statements the rows are to be added up.
    """
    wanted = {*told, *query.group_by, *query.filters}
    filters = [_K[key].in_(values) for key, values in query.filters.items() if key in _K]
    dimension = dimensions[0] if len(dimensions) == 1 else SET
    if dimension != SET:
        pieces = [_by_days(piece) for piece in pieces]
    shown = [column.name for column in list(_K)[1:] if column.name in wanted]
    chosen = [_D.dimension_id == dimension_id(dimension), _D.requests != 0, _K.fact.in_(facts)]
    if dimension in query.filters:
        values = [key_id((dimension, value)) for value in query.filters[dimension]]
        chosen.append(_D.value_id.in_(values))
    valued = [_D.value_id] if dimension == SET or dimension in query.group_by else []
    for span_s, buckets, quarter in _times(query, pieces):
        timed = [] if quarter is None else [quarter.label("quarter")]
        keys = [_K[name] for name in shown]
        by = [*timed, *valued, *(keys if timed and dimension != SET else [_D.key_id])]
        found = (
            select(*by, *(func.sum(_D[name]).label(name) for name in sums))
            .join_from(rollup_details, rollup_keys, _K.id == _D.key_id)
            .where(_D.span_s == span_s, _D.bucket_us.in_(buckets), *chosen, *filters)
            .group_by(*(column.name for column in by))
        )
        if dimension == SET:
            yield _split(found.subquery(), shown, query, dimensions, dialect)
        else:
            yield _spelled(found.subquery(), shown, valued=bool(valued))


def _spelled(found: Subquery, shown: Sequence[str], *, valued: bool) -> Select[Any]:
    """Sums with the texts of their values, and of their keys where these are ids."""
    a = found.c
    rest = null(), (_V.value if valued else null()).label("value")
    if "key_id" not in a:
        names = ("quarter", *_K.keys()[1:], *SUMS)
        statement = select(*(a[name] if name in a else null() for name in names), *rest)
        return (
            statement.join_from(found, rollup_values, _V.id == a.value_id) if valued else statement
        )
    statement = select(
        null(),
        *(column if column.name in shown else null() for column in list(_K)[1:]),
        *(func.sum(a[name]) if name in a else null() for name in SUMS),
        *rest,
    ).join_from(found, rollup_keys, _K.id == a.key_id)
    if valued:
        statement = statement.join(rollup_values, _V.id == a.value_id).group_by(_V.value)
    return statement.group_by(*(_K[name] for name in shown))


def _split(
    found: Subquery,
    shown: Sequence[str],
    query: ReportQuery,
    dimensions: Sequence[str],
    dialect: str,
) -> Select[Any]:
    """The sums of sets by the members that are asked for; of those that have all of these."""
    a = found.c
    members = cast(_V.value, JSON) if dialect == "postgresql" else type_coerce(_V.value, JSON)
    each = {d: case((_V.dimension == SET, members[d].as_string())) for d in dimensions}
    values = [
        (each[d] if d in query.group_by else null()).label(f"value{i}")
        for i, d in enumerate(dimensions)
    ]
    time = [a.quarter] if "quarter" in a else []
    return (
        select(
            a.quarter if time else null(),
            *(column if column.name in shown else null() for column in list(_K)[1:]),
            *(func.sum(a[name]) if name in a else null() for name in SUMS),
            null(),
            *values,
        )
        .join_from(found, rollup_keys, _K.id == a.key_id)
        .join(rollup_values, _V.id == a.value_id)
        .where(*(each[d].in_(query.filters[d]) for d in dimensions if d in query.filters))
        .where(*(each[d].is_not(None) for d in dimensions))
        .group_by(*time, *(_K[name] for name in shown), *(value.name for value in values))
    )


def _times(
    query: ReportQuery, pieces: Iterable[Piece]
) -> Iterator[tuple[int, Sequence[int], "ColumnElement[int] | None"]]:
    """Spans, begins of buckets, and the quarter of an hour that tells their local day or hour."""
    zone = ZoneInfo(query.tz)
    alike: dict[tuple[int, int], list[int]] = {}
    for piece in pieces:
        span_us = piece.span_s * 1_000_000  # a piece of months is one
        for at_us in range(piece.from_us, piece.until_us, span_us):
            offset_us = 0
            if piece.span_s == HALF_S and set(query.group_by) & set(TIME_KEYS):
                offset = datetime.fromtimestamp(at_us // 1_000_000, zone).utcoffset()
                offset_us = (offset or timedelta()) // timedelta(microseconds=1)
            alike.setdefault((piece.span_s, offset_us), []).append(at_us)
    for (span_s, offset_us), buckets in alike.items():
        quarter = _label(query, offset_us)
        for start in range(0, len(buckets), _BUCKETS_AT_ONCE):
            yield span_s, buckets[start : start + _BUCKETS_AT_ONCE], quarter


def _label(query: ReportQuery, offset_us: int) -> "ColumnElement[int] | None":
    """A quarter of an hour in the bucket's local hour or day, and in its UTC day."""
    if "hour" in query.group_by:  # its last: where clocks change by half an hour, it begins late
        begin_us = _D.bucket_us - (_D.bucket_us + offset_us) % HOUR_US
        return (begin_us + HOUR_US - QUARTER_US) // QUARTER_US
    return _noon_us(offset_us) // QUARTER_US if "day" in query.group_by else None


def _noon_us(offset_us: int) -> "ColumnElement[int]":
    """The noon of a bucket's local day, which is in that day even when clocks change; or what of
    the bucket's UTC day is next to it."""
    at = _D.bucket_us
    begin = at - at % DAY_US
    noon = at - (at + offset_us) % DAY_US + DAY_US // 2
    last = begin + DAY_US - QUARTER_US
    return case((noon < begin, begin), (noon > last, last), else_=noon)
