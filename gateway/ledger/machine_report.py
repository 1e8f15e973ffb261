"""How long each machine ran, and what of it served nobody: from measured intervals only.

A machine with several engines (version 1 of the rule): its run time is the union of its processes'
runs, so nobody pays twice for an hour. It is idle for the least of what its engines' clocks counted
as idle at that moment: as long as one works, it is not idle. It is loading or starting up for the
most that any engine counted, as far as no other was busy or all were idle. Between two readings a
clock's count is spread evenly. An engine that reports nothing leaves its time unattributed.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import select

from gateway.ledger.tables import machine_time

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_NS_PER_US = 1000


class Interval(Struct, frozen=True):
    """A row of `machine_time` without its machine."""

    backend: str
    kind: str
    started_us: int
    ended_us: int
    ns: int


class MachineHours(Struct, frozen=True, kw_only=True):
    """A machine's time in a period, nanoseconds."""

    run_ns: int = 0
    idle_ns: int = 0
    startup_ns: int = 0
    loading_ns: int = 0


async def machine_hours(
    connection: "AsyncConnection", since_us: int, until_us: int
) -> dict[str, MachineHours]:
    """By machine, what was measured in [since, until)."""
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
    return {  # a long period is seconds of work: not on the event loop
        machine: await asyncio.to_thread(sweep, intervals, since_us, until_us)
        for machine, intervals in by_machine.items()
    }


def sweep(intervals: Iterable[Interval], since_us: int, until_us: int) -> MachineHours:
    """Walk through the moments at which anything begins or ends, and share each stretch."""
    edges: list[tuple[int, bool, int]] = []
    kept = [i for i in intervals if i.ended_us > i.started_us]
    for index, interval in enumerate(kept):
        if interval.ended_us > since_us and interval.started_us < until_us:
            edges.append((max(interval.started_us, since_us), True, index))
            edges.append((min(interval.ended_us, until_us), False, index))
    edges.sort()
    active: set[int] = set()
    run = idle = startup = loading = 0
    before = 0
    for at, begins, index in edges:
        if at > before and active:
            here = [kept[i] for i in active]
            run += (at - before) * _NS_PER_US * any(i.kind == "run" for i in here)
            shares = _share(here, at - before)
            idle, startup, loading = idle + shares[0], startup + shares[1], loading + shares[2]
        before = at
        active.add(index) if begins else active.discard(index)
    return MachineHours(run_ns=run, idle_ns=idle, startup_ns=startup, loading_ns=loading)


def _share(active: list[Interval], us: int) -> tuple[int, int, int]:
    """Idle, start-up and loading nanoseconds of one stretch of `us` microseconds."""
    parts: dict[str, dict[str, int]] = {}
    for i in active:
        if i.kind != "run":
            of = parts.setdefault(i.backend, {})
            of[i.kind] = of.get(i.kind, 0) + i.ns * us // (i.ended_us - i.started_us)
    if not parts:
        return 0, 0, 0
    left = us * _NS_PER_US
    idle = min(left, min(of.get("idle", 0) for of in parts.values()))
    left -= idle
    left -= min(left, max(of.get("busy", 0) for of in parts.values()))
    loading = min(left, max(of.get("loading", 0) for of in parts.values()))
    left -= loading
    startup = min(left, max(of.get("startup", 0) for of in parts.values()))
    return idle, startup, loading
