"""`report costs`: what was spent, by whom, on what, and what the machines cost beside that.

Rows. What counts where stands in `report_lines`; totals count every request once. What the machines
cost beside their charges is shared out here.

Machines. `machine_cost_usd` is measured run time × price, `idle_cost_usd` what was measured as
idle, start-up, loading and lost work (see machine_time), and `unattributed_cost_usd` = machine cost
− idle cost − charges on those machines: the only subtraction here. Measurements reach the database
some seconds after charges do; charges of which there is no machine time yet are left out of it.
Idle cost is shared out over the rows by what each has on that machine: charges, tokens or requests,
or evenly; a machine that no row used stays unshared. `cost_usd` is what a request caused
(marginal), `full_cost_usd` adds its share.
"""

import asyncio
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.ledger.machine_costs import (
    CATEGORIES,
    MachineCost,
    allocate,
    known_machines,
    machine_costs,
)
from gateway.ledger.machine_prices import PricedMachine
from gateway.ledger.machine_report import Interval, machine_intervals, measured_until_us
from gateway.ledger.money import EXACT, to_usd, usd_text
from gateway.ledger.overruns import overrun_of
from gateway.ledger.report_lines import (
    BOTH,
    Group,
    Line,
    OnMachine,
    Wanted,
    added_up,
    key_names,
    lines_of,
    moment_of,
    snapshot,
    with_ids,
    with_names,
)
from gateway.ledger.report_query import (
    CHARGE_KEYS,
    TIME_KEYS,
    IdleKey,
    ReportError,
    ReportQuery,
    parse_query,
)
from gateway.ledger.report_rollups import first_us
from gateway.ledger.report_sums import KeySums
from gateway.ledger.savings import Booked, Served, against_largest, against_price, savings
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["ReportError", "cost_rows", "costs_report", "parse_query"]

_MTOK = Decimal(1_000_000)


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
    read = await _read(engine, settings, query)
    query, shown = read.query, read.shown
    machines = await asyncio.to_thread(  # a long period is seconds of work
        machine_costs, read.machines, read.measured, query.since_us, query.until_us
    )
    share_unserved(machines, read.lines, read.total, query.idle_by)
    shown.idle = sum(line.idle for line in read.lines.values())
    return {
        "since": None if query.since is None else _rfc3339(query.since),
        "until": _rfc3339(query.until),
        "tz": query.tz,
        "group_by": list(query.group_by),
        "rows": [
            {**_named(query, group, read.key_names), **_shown(line)}
            for group, line in _sorted(read.named, query)
        ],
        "totals": _shown(shown),
        **_of_machines(machines, read.charged, read.overrun),
        "savings": {
            **savings(settings, query, machines, read.total.saved, read.booked, read.begun_us),
            "against_price": against_price(price, _served(shown)),
            "against_largest": against_largest(settings, read.booked, _served(shown)),
        },
    }


class _Read(Struct, frozen=True, kw_only=True):
    """What one snapshot of the database says."""

    query: ReportQuery
    """With the ids of its names."""
    lines: Mapping[Group, Line]
    named: Sequence[tuple[Group, Line]]
    """The same lines, by names instead of ids."""
    key_names: Mapping[str, str]
    """By id, where it is grouped by key."""
    total: Line
    """Of everybody."""
    shown: Line
    """Of what the filters leave."""
    machines: Sequence[PricedMachine]
    measured: Mapping[str, Sequence[Interval]]
    booked: Sequence[Booked]
    charged: Mapping[str, int]
    """By machine, nano-dollars."""
    overrun: int
    """Nano-dollars."""
    begun_us: int | None
    """When the ledger began."""


async def _read(engine: "AsyncEngine", settings: Settings, query: ReportQuery) -> _Read:
    async with snapshot(engine) as connection:
        query = await with_ids(connection, query)
        known = KeySums()
        lines = await lines_of(connection, query, known=known)
        whole = ReportQuery(until=query.until, since=query.since)
        if _splits(query):
            total = added_up(lines)
        else:
            total = (await lines_of(connection, whole, known=known))[()]
        machines = await known_machines(connection, settings)
        measured = await machine_intervals(connection, query.since_us, query.until_us)
        by_kind = replace(whole, group_by=("kind", "backend"))
        booked = await lines_of(connection, by_kind, {"costs"}, known)
        charged = await _beside_machines(connection, query, total, measured, known)
        overrun = await overrun_of(connection, query.since_us, query.until_us)
        shown = total
        if query.filters:
            shown = (await lines_of(connection, replace(query, group_by=()), known=known))[()]
        named = await with_names(connection, lines, query)
        names = await key_names(connection) if "key" in query.group_by else {}
        begun_us = await first_us(connection)
    return _Read(
        query=query, lines=lines, named=named, key_names=names, total=total, shown=shown,
        machines=machines, measured=measured, booked=_booked(booked), charged=charged,
        overrun=overrun, begun_us=begun_us,
    )  # fmt: skip


def _named(query: ReportQuery, group: Group, names: Mapping[str, str]) -> dict[str, Any]:
    """A row's group; beside a key's id what it is called."""
    found: dict[str, Any] = dict(zip(query.group_by, group, strict=True))
    return found | {"key_name": names.get(found["key"])} if "key" in found else found


def _of_machines(
    machines: Sequence[MachineCost], charged: Mapping[str, int], overrun: int
) -> dict[str, Any]:
    """What the machines cost, what of it served nobody, and what is unexplained."""
    breakdown = {
        name: sum(machine.by_category[name] for machine in machines) for name in CATEGORIES
    }
    cost = sum(machine.cost for machine in machines)
    unserved = sum(breakdown.values())
    return {
        "machine_cost_usd": usd_text(cost),
        "idle_cost_usd": usd_text(unserved),
        "idle_breakdown": {
            **{name: usd_text(nano) for name, nano in breakdown.items()},
            "overrun": usd_text(overrun),  # part of the charges, and so of no sum here
        },
        "unattributed_cost_usd": usd_text(cost - unserved - sum(charged.values())),
        "machines": [machine.shown(charged.get(machine.machine.name, 0)) for machine in machines],
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
    wanted: Wanted | Sequence[Wanted] = BOTH,
) -> list[list[dict[str, Any]]]:
    """The rows of several groupings of one period.

    Args:
        wanted: counts (requests, tokens, hits), costs or both, of all groupings or of each; what is
            not wanted is 0.

    Raises:
        ReportError, SQLAlchemyError: as `costs_report`.
    """
    asked: dict[str, Any] = {"since": since, "until": until, "tz": tz, "filters": filters}
    now = now or datetime.now(UTC)
    queries = [parse_query(group_by=group_by, now=now, **asked) for group_by in groups]
    each = [wanted] * len(queries) if isinstance(wanted, Set) else wanted
    known, tables = KeySums(), []
    async with snapshot(engine) as connection:
        for query, of_query in zip(queries, each, strict=True):
            query = await with_ids(connection, query)
            lines = await lines_of(connection, query, of_query, known)
            named = await with_names(connection, lines, query)
            tables.append(
                [
                    {**dict(zip(query.group_by, group, strict=True)), **_shown(line)}
                    for group, line in _sorted(named, query)
                ]
            )
    return tables


def _booked(lines: Mapping[Group, Line]) -> list[Booked]:
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


def _served(line: Line) -> Served:
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


async def _beside_machines(
    connection: "AsyncConnection",
    query: ReportQuery,
    total: Line,
    measured: Mapping[str, Sequence[Interval]],
    known: KeySums,
) -> dict[str, int]:
    """What was charged on each machine, without charges younger than what is measured of it."""
    charged = {name: on.charges for name, on in total.by_machine.items()}
    young: dict[int, Line] = {}
    for name in charged:
        edge_us = measured_until_us(measured.get(name, ()), query.until_us)
        if query.since_us < edge_us < query.until_us:
            if edge_us not in young:
                asked = ReportQuery(since=moment_of(edge_us), until=query.until)
                young[edge_us] = (await lines_of(connection, asked, {"costs"}, known))[()]
            charged[name] -= young[edge_us].by_machine.get(name, OnMachine()).charges
        elif edge_us <= query.since_us:
            charged[name] = 0
    return charged


def share_unserved(
    machines: Sequence[MachineCost],
    lines: Mapping[Group, Line],
    total: Line,
    by: IdleKey,
) -> None:
    """Add to each line its share of what every machine cost beside its charges.

    Args:
        total: what the weights are parts of; what of it is in no line leaves its share out.
    """
    for machine in machines:
        name = machine.machine.name
        weights = [_weight(line, name, by) for line in lines.values()]
        rest = max(_weight(total, name, by) - sum(weights), 0) if by != "groups" else 0
        shares = allocate(machine.unserved, [*weights, rest])
        for line, part in zip(lines.values(), shares, strict=False):
            line.idle += part


def _weight(line: Line, machine: str, by: IdleKey) -> int:
    on = line.by_machine.get(machine)
    if on is None:
        return 0
    return 1 if by == "groups" else max(getattr(on, by), 0)


def _shown(line: Line) -> dict[str, Any]:
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


def _sorted(lines: Sequence[tuple[Group, Line]], query: ReportQuery) -> list[tuple[Group, Line]]:
    """In time where it is grouped by time, else the dearest first."""

    def by_time(item: tuple[Group, Line]) -> Any:
        group, line = item
        times = [g or "" for k, g in zip(query.group_by, group, strict=True) if k in TIME_KEYS]
        return times, -line.cost, [g or "" for g in group]

    return sorted(lines, key=by_time)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
