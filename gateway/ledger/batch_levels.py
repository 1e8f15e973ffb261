"""What a million tokens cost by how many requests their backend served at once.

A step's fixed part is shared by everybody in it, so the same tokens are dear alone and cheap in a
full batch; this report says by how much, out of the rows. A charge's batch is the mean number of
requests that its backend was working on from the request's start to the charge's booking, this one
included, weighted by time. Levels double: 1, 2-3, 4-7, …

Beside what the charges are (marginal) stands the full cost: what a machine cost beside its charges
is shared out over the rows here that worked on it.

Work that began before the period and was booked after it is not seen.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import select

from gateway.ledger.machine_costs import known_machines, machine_costs
from gateway.ledger.machine_report import machine_intervals
from gateway.ledger.money import usd_text
from gateway.ledger.report_lines import Line, OnMachine, added_up
from gateway.ledger.report_query import ReportError, ReportQuery
from gateway.ledger.reports import share_unserved, usd_per_mtok
from gateway.ledger.tables import charges, requests
from gateway.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_WORK = ("answer", "rung", "judge", "hedge", "retry", "shadow")
"""Kinds of charges whose tokens a backend computed for the request."""
_MOST_ROWS = 1_000_000


class Work(Struct, frozen=True):
    """One charge: when its backend worked for it, on how much, at what cost."""

    group: tuple[str | None, ...]
    backend: str
    machine: str | None
    began_us: int
    ended_us: int
    prompt_tokens: int
    completion_tokens: int
    cost: int
    """Nano-dollars."""


KEYS = ("backend", "model", "machine", "machine_type")
"""What rows may be grouped by beside the level; model: as requested."""


async def batch_report(
    connection: "AsyncConnection",
    settings: Settings,
    query: ReportQuery,
    keys: Sequence[str] = ("backend",),
) -> list[dict[str, Any]]:
    """Rows by `keys` and level, the lowest level first.

    Args:
        settings: prices of the machines.
        query: its period and `idle_by` count.

    Raises:
        ReportError: an unknown key, or a period of more charges than fit in memory.
    """
    for key in keys:
        if key not in KEYS:
            raise ReportError(f"group key {key!r}; allowed: {', '.join(KEYS)}")
    found = await _work(connection, query, keys)
    lines: dict[tuple[str | None, ...], Line] = {}
    for work, mean in zip(found, mean_batches(found), strict=True):
        level = _level_text(round(mean).bit_length())
        _add(lines.setdefault((*work.group, level), Line()), work)
    measured = await machine_intervals(connection, query.since_us, query.until_us)
    known = await known_machines(connection, settings)
    machines = await asyncio.to_thread(
        machine_costs, known, measured, query.since_us, query.until_us
    )
    share_unserved(machines, lines, added_up(lines), query.idle_by)
    return [
        {
            **dict(zip((*keys, "batch"), group, strict=True)),
            "charges": line.requests,
            "prompt_tokens": line.prompt_tokens,
            "completion_tokens": line.completion_tokens,
            "cost_usd": usd_text(line.cost),
            "full_cost_usd": usd_text(line.cost + line.idle),
            "usd_per_million_tokens": usd_per_mtok(line.cost, line.charged_tokens),
            "full_usd_per_million_tokens": usd_per_mtok(line.cost + line.idle, line.charged_tokens),
        }
        for group, line in sorted(lines.items(), key=_in_order)
    ]


def _add(line: Line, work: Work) -> None:
    tokens = work.prompt_tokens + work.completion_tokens
    line.requests += 1
    line.prompt_tokens += work.prompt_tokens
    line.completion_tokens += work.completion_tokens
    line.charged_tokens += tokens
    line.cost += work.cost
    if work.machine is not None:
        on = line.by_machine.setdefault(work.machine, OnMachine())
        on.charges += work.cost
        on.tokens += tokens
        on.requests += 1


def _in_order(row: tuple[tuple[str | None, ...], Line]) -> tuple[list[str], int]:
    *group, level = row[0]
    return [str(part) for part in group], int(str(level).partition("-")[0])


async def _work(
    connection: "AsyncConnection", query: ReportQuery, keys: Sequence[str]
) -> list[Work]:
    c, r = charges.c, requests.c
    columns = [r.model if key == "model" else c[key] for key in keys]
    figures = (c.prompt_tokens, c.completion_tokens, c.cost_nano_usd)
    wanted = (
        select(c.backend, c.machine, r.started_us, c.at_us, *figures, *columns)
        .join_from(charges, requests, r.request_id == c.request_id)
        .where(c.at_us >= query.since_us, c.at_us < query.until_us, c.kind.in_(_WORK))
        .limit(_MOST_ROWS + 1)
    )
    rows = (await connection.execute(wanted)).all()
    if len(rows) > _MOST_ROWS:
        raise ReportError(f"more than {_MOST_ROWS} charges; give a later --since")
    return [
        Work(tuple(group), backend, machine, began, max(ended, began + 1), prompt, completion, cost)
        for backend, machine, began, ended, prompt, completion, cost, *group in rows
        if prompt + completion > 0
    ]


def mean_batches(found: Sequence[Work]) -> list[float]:
    """Of each: how many its backend worked on meanwhile, on average; at least 1."""
    events: dict[str, list[tuple[int, int]]] = {}
    for work in found:
        events.setdefault(work.backend, []).extend(((work.began_us, 1), (work.ended_us, -1)))
    areas = {backend: _area(changes) for backend, changes in events.items()}
    means = []
    for work in found:
        moments, area = areas[work.backend]
        begin, end = bisect_left(moments, work.began_us), bisect_left(moments, work.ended_us)
        means.append((area[end] - area[begin]) / (work.ended_us - work.began_us))
    return means


def _area(changes: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Moments at which the number changes, and its integral over time up to each."""
    changes.sort()
    moments = [at for at, _ in changes]
    running = accumulate(change for _, change in changes)
    spans = pairwise(moments)
    steps = (number * (end - begin) for number, (begin, end) in zip(running, spans, strict=False))
    return moments, list(accumulate(steps, initial=0))


def _level_text(level: int) -> str:
    first, last = 1 << (level - 1), (1 << level) - 1
    return str(first) if first == last else f"{first}-{last}"
