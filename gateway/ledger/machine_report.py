"""How long each machine ran, and what of it served nobody: from measured intervals only.

A machine's run time is the union of its processes' runs, so nobody pays twice for an hour. The
other kinds are shares of the machine that its meter handed out once, so they are added up. What an
interval measured is spread evenly over it where a period cuts it.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field
from sqlalchemy import select

from gateway.ledger.tables import machine_prices, machine_time
from gateway.settings.prices import MachineSettings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_NS_PER_US = 1000
MOST_BEHIND_US = 120_000_000
"""Rows of a machine that runs are written once a minute or more often."""


class Interval(Struct, frozen=True):
    """A row of `machine_time` without its machine."""

    backend: str
    kind: str
    started_us: int
    ended_us: int
    ns: int


class MachineHours(Struct, kw_only=True):
    """A machine's time in a period, nanoseconds."""

    run_ns: int = 0
    idle_ns: int = 0
    startup_ns: int = 0
    loading_ns: int = 0
    lost_ns: int = 0
    busy_ns: dict[str, int] = field(default_factory=dict)
    """By backend, what its process measured while it had requests; lost work included."""


async def machine_intervals(
    connection: "AsyncConnection", since_us: int, until_us: int
) -> dict[str, list[Interval]]:
    """By machine, the rows that touch [since, until)."""
    c = machine_time.c
    rows: Sequence[Any] = (
        await connection.execute(
            select(c.machine, c.backend, c.kind, c.started_us, c.ended_us, c.ns).where(
                c.ended_us > since_us, c.started_us < until_us
            )
        )
    ).all()
    by_machine: dict[str, list[Interval]] = {}
    for machine, *rest in rows:
        by_machine.setdefault(machine, []).append(Interval(*rest))
    return by_machine


async def recorded_machines(
    connection: "AsyncConnection",
) -> dict[str, list[tuple[int, MachineSettings]]]:
    """By machine, since when (unix microseconds, ascending) it is configured how."""
    c = machine_prices.c
    found: dict[str, list[tuple[int, MachineSettings]]] = {}
    for row in await connection.execute(select(machine_prices).order_by(c.machine, c.since_us)):
        machine = msgspec.convert(row.configured, MachineSettings)
        found.setdefault(row.machine, []).append((row.since_us, machine))
    return found


def measured_until_us(intervals: Iterable[Interval], until_us: int) -> int:
    """Up to when it is known what a machine did: its run and its meter are written now and then,
    and at once when it stops."""
    ends: dict[bool, int] = {}
    for i in intervals:
        is_run = i.kind == "run"
        ends[is_run] = max(ends.get(is_run, 0), i.ended_us)
    behind_us = until_us - MOST_BEHIND_US
    recent = [end_us for end_us in ends.values() if end_us > behind_us]
    return min(until_us, *recent) if recent else behind_us


def add_up(intervals: Iterable[Interval], edges_us: Sequence[int]) -> list[MachineHours]:
    """One machine's time between each two of the edges, which ascend."""
    found = [MachineHours() for _ in edges_us[1:]]
    runs: list[list[tuple[int, int]]] = [[] for _ in found]
    for i in intervals:
        place = max(bisect_right(edges_us, i.started_us) - 1, 0)
        while place < len(found) and edges_us[place] < i.ended_us:
            start, end = max(i.started_us, edges_us[place]), min(i.ended_us, edges_us[place + 1])
            if end > start and i.kind == "run":
                runs[place].append((start, end))
            elif end > start:
                _count(found[place], i, end - start)
            place += 1
    for hours, spans in zip(found, runs, strict=True):
        hours.run_ns = _union_us(spans) * _NS_PER_US
    return found


def _count(hours: MachineHours, i: Interval, us: int) -> None:
    ns = i.ns * us // (i.ended_us - i.started_us)
    if i.kind == "busy":
        hours.busy_ns[i.backend] = hours.busy_ns.get(i.backend, 0) + ns
    else:
        name = f"{i.kind}_ns"
        setattr(hours, name, getattr(hours, name) + ns)


def _union_us(spans: list[tuple[int, int]]) -> int:
    """How much time the spans cover together."""
    covered = until = 0
    for start, end in sorted(spans):
        covered += max(0, end - max(start, until))
        until = max(until, end)
    return covered
