"""`report costs`: what was spent, by whom, on what, and what the machines cost beside that.

Rows. Requests and their tokens count in the period in which they started; charges in the period in
which they were booked. Grouped by a key of charges (backend, machine, machine_type, kind), a
request counts once in every group that it has a charge in, with the tokens of those charges, and
again for a charge that is booked in a later quarter of an hour; a request without charges and a
cache hit count under the backend that answered. Totals count every request once. The sums come
from the roll-ups as far as they hold the keys and the period (see report_rollups), else from the
rows; both give the same figures.

Machines. `machine_cost_usd` is measured run time × price, `idle_cost_usd` what was measured as
idle, start-up, loading and lost work (see machine_time), and `unattributed_cost_usd` = machine cost
− idle cost − charges on those machines: the only subtraction here. Measurements reach the database
some seconds after charges do; charges of which there is no machine time yet are left out of it.
Idle cost is shared out over the rows by what each has on that machine: charges, tokens or requests,
or evenly; a machine that no row used stays unshared. `cost_usd` is what a request caused
(marginal), `full_cost_usd` adds its share.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from msgspec import Struct, field
from msgspec.structs import replace
from sqlalchemy import Select

from gateway.ledger import report_sql as sql
from gateway.ledger import subjects
from gateway.ledger.machine_costs import CATEGORIES, MachineCost, allocate, machine_costs
from gateway.ledger.machine_report import Interval, machine_intervals, measured_until_us
from gateway.ledger.money import EXACT, to_usd, usd_text
from gateway.ledger.overruns import overrun_of
from gateway.ledger.report_query import (
    CHARGE_KEYS,
    TIME_KEYS,
    IdleKey,
    ReportError,
    ReportQuery,
    parse_query,
)
from gateway.ledger.report_sums import FromSums, KeySums, Row
from gateway.ledger.savings import Booked, Served, against_largest, against_price, savings
from gateway.ledger.subjects import SUBJECT_KINDS
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["ReportError", "cost_rows", "costs_report", "parse_query"]

_MTOK = Decimal(1_000_000)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Group = tuple[str | None, ...]
Wanted = Set[Literal["counts", "costs"]]
BOTH: Wanted = frozenset(("counts", "costs"))


class _OnMachine(Struct):
    """What was charged on one machine."""

    charges: int = 0
    """Nano-dollars."""
    tokens: int = 0
    requests: int = 0
    """Counted once for each charge."""


class _Line(Struct):
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
    charged_tokens: int = 0
    """Of prompts and answers, by charges."""
    by_machine: dict[str, _OnMachine] = field(default_factory=dict)
    """Of machines paid by the hour."""
    idle: int = 0


_SUMS = tuple(name for name in _Line.__struct_fields__ if name not in ("by_machine", "idle"))


async def costs_report(
    engine: "AsyncEngine",
    settings: Settings,
    *,
    group_by: str | Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    tz: str = "UTC",
    filters: Mapping[str, Sequence[str]] | None = None,
    idle_by: str = "charges",
    against: str | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """The contract's JSON object; amounts are decimal strings.

    Args:
        settings: prices of the machines.
        filters: only these rows; the machines' figures stay those of everybody.
        idle_by: charges, tokens, requests or groups: what shares out the machines' idle cost.
        against: a price, by name or as IN/OUT; None: that of `[reports]`.

    Raises:
        ReportError: a question that cannot be answered.
        SQLAlchemyError: the database does not answer.
    """
    query = parse_query(
        group_by=group_by,
        since=since,
        until=until,
        tz=tz,
        filters=filters,
        idle_by=idle_by,
        now=now or datetime.now(UTC),
    )
    price = settings.outside_price(against)
    async with snapshot(engine) as connection:
        query = await _with_ids(connection, query)
        known = KeySums()
        lines = await _lines(connection, query, known=known)
        whole = ReportQuery(until=query.until, since=query.since)
        if _splits(query):
            total = _added_up(lines)
        else:
            total = (await _lines(connection, whole, known=known))[()]
        measured = await machine_intervals(connection, query.since_us, query.until_us)
        by_kind = replace(whole, group_by=("kind", "backend"))
        booked = await _lines(connection, by_kind, {"costs"}, known)
        charged = await _beside_machines(connection, query, total, measured, known)
        overrun = await overrun_of(connection, query.since_us, query.until_us)
        shown = total
        if query.filters:
            shown = (await _lines(connection, replace(query, group_by=()), known=known))[()]
        named = await _named(connection, lines, query)
    machines = await asyncio.to_thread(  # a long period is seconds of work
        machine_costs, settings, measured, query.since_us, query.until_us
    )
    _share_unserved(machines, lines, total, query.idle_by)
    shown.idle = sum(line.idle for line in lines.values())
    breakdown = {
        name: sum(machine.by_category[name] for machine in machines) for name in CATEGORIES
    }
    cost = sum(machine.cost for machine in machines)
    unserved = sum(breakdown.values())
    return {
        "since": None if query.since is None else _rfc3339(query.since),
        "until": _rfc3339(query.until),
        "tz": query.tz,
        "group_by": list(query.group_by),
        "rows": [
            {**dict(zip(query.group_by, group, strict=True)), **_shown(line)}
            for group, line in _sorted(named, query)
        ],
        "totals": _shown(shown),
        "machine_cost_usd": usd_text(cost),
        "idle_cost_usd": usd_text(unserved),
        "idle_breakdown": {
            **{name: usd_text(nano) for name, nano in breakdown.items()},
            "overrun": usd_text(overrun),  # part of the charges, and so of no sum here
        },
        "unattributed_cost_usd": usd_text(cost - unserved - sum(charged.values())),
        "machines": [machine.shown(charged.get(machine.machine.name, 0)) for machine in machines],
        "savings": {
            **savings(settings, query, machines, total.saved, _booked(booked)),
            "against_price": against_price(price, _served(shown)),
            "against_largest": against_largest(settings, _booked(booked), _served(shown)),
        },
    }


async def cost_rows(
    engine: "AsyncEngine", *, group_by: str | Sequence[str] = (), **asked: Any
) -> list[dict[str, Any]]:
    """Only the rows of `costs_report`, without machines, their idle shares and totals: for charts.

    Args:
        asked: as `cost_tables` takes it.

    Raises:
        ReportError, SQLAlchemyError: as there.
    """
    return (await cost_tables(engine, groups=[group_by], **asked))[0]


async def cost_tables(
    engine: "AsyncEngine",
    *,
    groups: Sequence[str | Sequence[str]],
    since: str | None = None,
    until: str | None = None,
    tz: str = "UTC",
    filters: Mapping[str, Sequence[str]] | None = None,
    now: datetime | None = None,
    wanted: Wanted = BOTH,
) -> list[list[dict[str, Any]]]:
    """The rows of several groupings of one period.

    Args:
        wanted: counts (requests, tokens, hits), costs or both; what is not wanted is 0.

    Raises:
        ReportError, SQLAlchemyError: as `costs_report`.
    """
    asked: dict[str, Any] = {"since": since, "until": until, "tz": tz, "filters": filters}
    now = now or datetime.now(UTC)
    queries = [parse_query(group_by=group_by, now=now, **asked) for group_by in groups]
    known, tables = KeySums(), []
    async with snapshot(engine) as connection:
        for query in queries:
            query = await _with_ids(connection, query)
            named = await _named(connection, await _lines(connection, query, wanted, known), query)
            tables.append(
                [
                    {**dict(zip(query.group_by, group, strict=True)), **_shown(line)}
                    for group, line in _sorted(named, query)
                ]
            )
    return tables


def _booked(lines: Mapping[Group, _Line]) -> list[Booked]:
    """What was charged by kind and backend, and of that to others than our machines."""
    return [
        Booked(
            kind=str(kind),
            backend=str(backend),
            cost=line.cost,
            tokens=line.charged_tokens,
            outside=line.cost - sum(on.charges for on in line.by_machine.values()),
        )
        for (kind, backend), line in lines.items()
    ]


def _served(line: _Line) -> Served:
    return Served(
        prompt_tokens=line.prompt_tokens,
        cached_prompt_tokens=line.cached_prompt_tokens,
        completion_tokens=line.completion_tokens,
        cost=line.cost,
        idle=line.idle,
    )


def _splits(query: ReportQuery) -> bool:
    """Whether every request and every charge is in exactly one of the rows."""
    return not query.filters and not any(key in CHARGE_KEYS for key in query.group_by)


def _added_up(lines: Mapping[Group, _Line]) -> _Line:
    total = _Line()
    for line in lines.values():
        for name in _SUMS:
            setattr(total, name, getattr(total, name) + getattr(line, name))
        for machine, on in line.by_machine.items():
            known = total.by_machine.setdefault(machine, _OnMachine())
            known.charges += on.charges
            known.tokens += on.tokens
            known.requests += on.requests
    return total


@asynccontextmanager
async def snapshot(engine: "AsyncEngine") -> AsyncIterator["AsyncConnection"]:
    """All queries of a report see the same rows, so its sums agree."""
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execution_options(isolation_level="REPEATABLE READ")
        else:
            await connection.exec_driver_sql("BEGIN")
        yield connection


# Rows


async def _lines(
    connection: "AsyncConnection",
    query: ReportQuery,
    wanted: Wanted = BOTH,
    known: KeySums | None = None,
) -> dict[Group, _Line]:
    """All rows of the report by group, teams and users as ids, without idle shares.

    Args:
        known: what other questions about the same snapshot have found.
    """
    sums = known or KeySums()
    lines: dict[Group, _Line] = {}
    plan = await sums.plan(connection, query)
    for buckets in plan.batches:
        found = await sums.of(connection, query, buckets, counts="counts" in wanted)
        await _add(connection, lines, FromSums(query, found), wanted)
    for begin_us, end_us in plan.rows:
        part = replace(query, since=_moment(begin_us), until=_moment(end_us))
        await _add(connection, lines, sql.FromRows(part), wanted)
    if not query.group_by:
        lines.setdefault((), _Line())
    return lines


async def _add(
    connection: "AsyncConnection",
    lines: dict[Group, _Line],
    source: sql.FromRows | FromSums,
    wanted: Wanted,
) -> None:
    """Add what a source has of the period to the lines."""
    query = source.query
    fold, width = _folder(query), len(query.group_by)

    async def found(asked: Select[Any] | list[Row]) -> Iterable[Sequence[Any]]:
        return asked if isinstance(asked, list) else await connection.execute(asked)

    async def add(asked: Select[Any] | list[Row], figures: Sequence[str]) -> None:
        for row in await found(asked):
            line = lines.setdefault(fold(row[:width]), _Line())
            for figure, value in zip(figures, row[width:], strict=True):
                setattr(line, figure, getattr(line, figure) + int(value or 0))

    if "counts" not in wanted:
        pass
    elif any(key in CHARGE_KEYS for key in (*query.group_by, *query.filters)):
        await add(source.requests_by_charge(), ("requests", "errors"))
        await add(source.tokens_by_charge(), sql.TOKENS)
        await add(source.uncharged(), (*sql.COUNTS, *sql.TOKENS))
        await add(source.hits_beside_charges(), sql.HITS)
    else:
        await add(source.by_request(), (*sql.COUNTS, *sql.TOKENS))
    if "costs" not in wanted:
        return
    for row in await found(source.costs()):
        line = lines.setdefault(fold(row[:width]), _Line())
        cost, count, *tokens = (int(value or 0) for value in row[width + 1 :])
        line.cost += cost
        line.charged_tokens += sum(tokens)
        if row[width] is not None:
            on = line.by_machine.setdefault(row[width], _OnMachine())
            on.charges += cost
            on.requests += count
            on.tokens += sum(tokens)


async def sums_by(
    connection: "AsyncConnection", query: ReportQuery, keys: tuple[str, ...]
) -> list[tuple[Group, int]]:
    """What was charged by these keys in the query's period, nano-dollars."""
    query = await _with_ids(connection, replace(query, group_by=keys))
    lines = await _lines(connection, query)
    return [(group, line.cost) for group, line in await _named(connection, lines, query)]


def _moment(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


async def _with_ids(connection: "AsyncConnection", query: ReportQuery) -> ReportQuery:
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


async def _named(
    connection: "AsyncConnection", lines: Mapping[Group, _Line], query: ReportQuery
) -> list[tuple[Group, _Line]]:
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


def _folder(query: ReportQuery) -> Callable[[Sequence[Any]], Group]:
    """Turns the group's SQL values into what is printed: quarters become local days and hours."""
    zone = ZoneInfo(query.tz)

    def show(key: str, value: Any) -> str | None:
        if key not in TIME_KEYS or value is None:
            return None if value is None else str(value)
        moment = datetime.fromtimestamp(int(value) * sql.BUCKET_US // 1_000_000, zone)
        if key == "day":
            return moment.date().isoformat()
        return moment.replace(minute=0).isoformat()

    return lambda row: tuple(
        show(key, value) for key, value in zip(query.group_by, row, strict=True)
    )


# Machines


async def _beside_machines(
    connection: "AsyncConnection",
    query: ReportQuery,
    total: _Line,
    measured: Mapping[str, Sequence[Interval]],
    known: KeySums,
) -> dict[str, int]:
    """What was charged on each machine, without charges younger than what is measured of it."""
    charged = {name: on.charges for name, on in total.by_machine.items()}
    young: dict[int, _Line] = {}
    for name in charged:
        edge_us = measured_until_us(measured.get(name, ()), query.until_us)
        if query.since_us < edge_us < query.until_us:
            if edge_us not in young:
                asked = ReportQuery(since=_moment(edge_us), until=query.until)
                young[edge_us] = (await _lines(connection, asked, {"costs"}, known))[()]
            charged[name] -= young[edge_us].by_machine.get(name, _OnMachine()).charges
        elif edge_us <= query.since_us:
            charged[name] = 0
    return charged


def _share_unserved(
    machines: Sequence[MachineCost],
    lines: Mapping[Group, _Line],
    total: _Line,
    by: IdleKey,
) -> None:
    """Add to each line its share of what every machine cost beside its charges."""
    for machine in machines:
        name = machine.machine.name
        weights = [_weight(line, name, by) for line in lines.values()]
        rest = max(_weight(total, name, by) - sum(weights), 0) if by != "groups" else 0
        shares = allocate(machine.unserved, [*weights, rest])
        for line, part in zip(lines.values(), shares, strict=False):
            line.idle += part


def _weight(line: _Line, machine: str, by: IdleKey) -> int:
    on = line.by_machine.get(machine)
    if on is None:
        return 0
    return 1 if by == "groups" else max(getattr(on, by), 0)


# Printing


def _shown(line: _Line) -> dict[str, Any]:
    tokens = line.prompt_tokens + line.completion_tokens
    return {
        "requests": line.requests,
        "prompt_tokens": line.prompt_tokens,
        "cached_prompt_tokens": line.cached_prompt_tokens,
        "completion_tokens": line.completion_tokens,
        "cost_usd": usd_text(line.cost),
        "idle_share_usd": usd_text(line.idle),
        "full_cost_usd": usd_text(line.cost + line.idle),
        "saved_usd": usd_text(line.saved),
        "usd_per_million_tokens": usd_per_mtok(line.cost, tokens),
        "full_usd_per_million_tokens": usd_per_mtok(line.cost + line.idle, tokens),
        "cache_hits_exact": line.cache_hits_exact,
        "cache_hits_semantic": line.cache_hits_semantic,
        "errors": line.errors,
    }


def usd_per_mtok(nano_usd: int, tokens: int) -> str | None:
    """Dollars per million tokens as a decimal string; None without any."""
    if tokens <= 0:
        return None
    price = EXACT.divide(EXACT.multiply(to_usd(nano_usd), _MTOK), Decimal(tokens))
    return format(price.quantize(Decimal("0.000001"), ROUND_HALF_EVEN), "f")


def _sorted(lines: Sequence[tuple[Group, _Line]], query: ReportQuery) -> list[tuple[Group, _Line]]:
    """In time where it is grouped by time, else the dearest first."""

    def by_time(item: tuple[Group, _Line]) -> Any:
        group, line = item
        times = [g or "" for k, g in zip(query.group_by, group, strict=True) if k in TIME_KEYS]
        return times, -line.cost, [g or "" for g in group]

    return sorted(lines, key=by_time)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
