"""A report's rows: what the roll-ups and, where these do not reach, the rows themselves hold of a
period, by group.

Requests and their tokens count in the period in which they started; charges in the period in which
they were booked. Grouped by a key of charges (backend, machine, machine_type, kind), a request
counts once in every group that it has a charge in, with the tokens of those charges, and again for
a charge that is booked in a later quarter of an hour; a request without charges and a cache hit
count under the backend that answered. Roll-ups (see `report_rollups`) and rows give the same
figures.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol
from zoneinfo import ZoneInfo

from msgspec import Struct, field
from msgspec.structs import replace
from sqlalchemy import Select, select

from gateway.ledger import report_sql as sql
from gateway.ledger import subjects
from gateway.ledger.report_details import rollups_of
from gateway.ledger.report_query import CHARGE_KEYS, TIME_KEYS, ReportQuery
from gateway.ledger.report_rollups import batches
from gateway.ledger.report_sums import FromSums, KeySums, Row, parts, without_values
from gateway.ledger.rollups import DAY_S, QUARTER_S
from gateway.ledger.subjects import SUBJECT_KINDS
from gateway.ledger.tables import keys as api_keys

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Group = tuple[str | None, ...]
Wanted = Set[Literal["counts", "answers", "costs"]]
"""answers: counts under who answered, each request once, whoever else worked for it."""
BOTH: Wanted = frozenset(("counts", "costs"))


class _Folder(Protocol):
    def __call__(self, row: Sequence[Any], *, at_noon: bool) -> Group: ...


class OnMachine(Struct):
    """What was charged on one machine."""

    charges: int = 0
    """Nano-dollars."""
    tokens: int = 0
    requests: int = 0
    """Counted once for each charge."""


class Line(Struct):
    """One row while it is added up; money in nano-dollars."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0
    saved: int = 0
    cache_hits_exact: int = 0
    cache_hits_semantic: int = 0
    errors: int = 0
    charge_count: int = 0
    charged_tokens: int = 0
    """Of prompts and answers, by charges."""
    by_machine: dict[str, OnMachine] = field(default_factory=dict)
    """Of machines paid by the hour."""
    idle: int = 0


class _Way(Struct, frozen=True):
    """How what was found counts."""

    sign: int
    at_noon: bool = False
    """At the noon of its UTC day, where the whole day counts, instead of when it was."""


_MORE, _LESS_AT_NOON = _Way(1), _Way(-1, at_noon=True)
_QUARTERS = DAY_S // QUARTER_S
"""Of a day."""
_SUMS = tuple(name for name in Line.__struct_fields__ if name not in ("by_machine", "idle"))


@asynccontextmanager
async def snapshot(engine: "AsyncEngine") -> AsyncIterator["AsyncConnection"]:
    """All queries of a report see the same rows, so its sums agree."""
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execution_options(isolation_level="REPEATABLE READ")
        else:
            await connection.exec_driver_sql("BEGIN")
        yield connection


async def lines_of(
    connection: "AsyncConnection",
    query: ReportQuery,
    wanted: Wanted = BOTH,
    known: KeySums | None = None,
) -> dict[Group, Line]:
    """All rows of the report by group, teams and users as ids, without idle shares.

    Args:
        known: what other questions about the same snapshot have found.
    """
    sums = known or KeySums()
    lines: dict[Group, Line] = {}
    plan = await sums.plan(connection, query)
    counts = wanted != {"costs"}
    add = partial(_add, connection, lines, wanted)
    for pieces, ways in (
        (plan.buckets, (_MORE,)),
        (plan.moved, (_MORE, _LESS_AT_NOON)),
        (plan.spare, (_LESS_AT_NOON,)),
    ):
        for buckets in batches(pieces):
            for having, shown in parts(query):
                named = await sums.by_value(connection, query, having, buckets, counts=counts)
                for under, sign in shown:
                    signed = [replace(way, sign=sign * way.sign) for way in ways]
                    rows = named if under else without_values(named)
                    await add(FromSums(query, rows, having, under), signed)
            if query.dimensions:
                if set(query.dimensions) & set(query.filters):
                    continue
                buckets = rollups_of(query, buckets)
            for each in batches(buckets):
                found = await sums.of(connection, query, each, counts=counts)
                await add(FromSums(query, found), ways)
    for periods, ways in (
        (plan.rows, (_MORE,)),
        (plan.moved_rows, (_MORE, _LESS_AT_NOON)),
        (plan.spare_rows, (_LESS_AT_NOON,)),
    ):
        for some in batches(periods):
            await add(sql.FromRows(query, some), ways)
    if not query.group_by:
        lines.setdefault((), Line())
        return lines
    return _in_order(lines)


def _in_order(lines: Mapping[Group, Line]) -> dict[Group, Line]:
    """In an order that does not depend on what they were added up from; without groups of which
    all was taken out."""
    found: dict[Group, Line] = {}
    for group in sorted(lines, key=lambda group: [(name is None, name or "") for name in group]):
        line = lines[group]
        line.by_machine = {name: on for name, on in line.by_machine.items() if on.requests}
        if line != Line():
            found[group] = line
    return found


async def _add(
    connection: "AsyncConnection",
    lines: dict[Group, Line],
    wanted: Wanted,
    source: sql.FromRows | FromSums,
    ways: Sequence["_Way"] = (_MORE,),
) -> None:
    """Add what a source has of the period to the lines, in each of these ways."""
    query = source.query
    fold, width = _folder(query), len(query.group_by)

    async def found(asked: Select[Any] | list[Row]) -> Iterable[Sequence[Any]]:
        return asked if isinstance(asked, list) else await connection.execute(asked)

    def counted(row: Sequence[Any]) -> Iterator[tuple[Line, int]]:
        for way in ways:
            yield lines.setdefault(fold(row[:width], at_noon=way.at_noon), Line()), way.sign

    async def add(asked: Select[Any] | list[Row], figures: Sequence[str]) -> None:
        for row in await found(asked):
            for line, sign in counted(row):
                for figure, value in zip(figures, row[width:], strict=True):
                    setattr(line, figure, getattr(line, figure) + sign * int(value or 0))

    by_work = any(key in CHARGE_KEYS for key in (*query.group_by, *query.filters))
    if "answers" in wanted or ("counts" in wanted and not by_work):
        await add(source.by_request(), (*sql.COUNTS, *sql.TOKENS))
    elif "counts" in wanted:
        await add(source.requests_by_charge(), ("requests", "errors"))
        await add(source.tokens_by_charge(), sql.TOKENS)
        await add(source.uncharged(), (*sql.COUNTS, *sql.TOKENS))
        await add(source.hits_beside_charges(), ("requests", *sql.HITS))
    if "costs" not in wanted:
        return
    for row in await found(source.costs()):
        for line, sign in counted(row):
            cost, count, *tokens = (sign * int(value or 0) for value in row[width + 1 :])
            line.cost += cost
            line.charge_count += count
            line.charged_tokens += sum(tokens)
            if row[width] is not None:
                on = line.by_machine.setdefault(row[width], OnMachine())
                on.charges += cost
                on.requests += count
                on.tokens += sum(tokens)


async def sums_by(
    connection: "AsyncConnection", query: ReportQuery, keys: tuple[str, ...]
) -> list[tuple[Group, int]]:
    """What was charged by these keys in the query's period, nano-dollars."""
    query = await with_ids(connection, replace(query, group_by=keys))
    lines = await lines_of(connection, query)
    return [(group, line.cost) for group, line in await with_names(connection, lines, query)]


def moment_of(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


async def with_ids(connection: "AsyncConnection", query: ReportQuery) -> ReportQuery:
    """The query with ids in its filters by team and user; a name without one matches no row."""
    wanted = [(kind, name) for kind in SUBJECT_KINDS for name in query.filters.get(kind, ())]
    if not wanted:
        return query
    ids = await subjects.find_ids(connection, wanted)
    filters = dict(query.filters)
    for kind in SUBJECT_KINDS:
        if kind in filters:
            filters[kind] = [ids[kind, name] for name in filters[kind] if (kind, name) in ids]
    return replace(query, filters=filters)


async def with_names(
    connection: "AsyncConnection", lines: Mapping[Group, Line], query: ReportQuery
) -> list[tuple[Group, Line]]:
    """The lines with the names of teams and users."""
    at = [index for index, key in enumerate(query.group_by) if key in SUBJECT_KINDS]
    if not at:
        return list(lines.items())
    ids = {group[index] for group in lines for index in at}
    names = await subjects.names_of(connection, (one for one in ids if one is not None))
    return [
        (tuple(subjects.shown(v, names) if i in at else v for i, v in enumerate(group)), line)
        for group, line in lines.items()
    ]


async def key_names(connection: "AsyncConnection") -> dict[str, str]:
    """What keys are called, by id; most have no name."""
    named = select(api_keys.c.id, api_keys.c.name).where(api_keys.c.name != "")
    return {row.id: row.name for row in await connection.execute(named)}


def _folder(query: ReportQuery) -> "_Folder":
    """Turns the group's SQL values into what is printed: quarters become local days and hours."""
    zone = ZoneInfo(query.tz)

    @cache  # there are fewer times than rows
    def show(key: str, value: Any, at_noon: bool) -> str | None:
        if key not in TIME_KEYS or value is None:
            return None if value is None else str(value)
        quarter = int(value)
        if at_noon:
            quarter += _QUARTERS // 2 - quarter % _QUARTERS
        moment = datetime.fromtimestamp(quarter * sql.BUCKET_US // 1_000_000, zone)
        if key == "day":
            return moment.date().isoformat()
        return moment.replace(minute=0).isoformat()

    return lambda row, *, at_noon: tuple(
        show(key, value, at_noon) for key, value in zip(query.group_by, row, strict=True)
    )


def added_up(lines: Mapping[Group, Line]) -> Line:
    total = Line()
    for line in lines.values():
        for name in _SUMS:
            setattr(total, name, getattr(total, name) + getattr(line, name))
        for machine, on in line.by_machine.items():
            known = total.by_machine.setdefault(machine, OnMachine())
            known.charges += on.charges
            known.tokens += on.tokens
            known.requests += on.requests
    return total
