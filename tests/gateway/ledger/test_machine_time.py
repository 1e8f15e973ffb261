"""Machine time: written as measured, shared among engines by a stated rule."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.machine_report import Interval, MachineHours, sweep
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.tables import machine_time

S = 10**9
US = 10**6
"""Microseconds in a second."""


def _interval(
    backend: str, kind: str, start_s: int, end_s: int, s: float | None = None
) -> Interval:
    ns = (end_s - start_s) * S if s is None else round(s * S)
    return Interval(backend, kind, start_s * US, end_s * US, ns)


async def _rows(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    c = machine_time.c
    async with engine.connect() as connection:
        found = await connection.execute(
            select(c.backend, c.kind, c.started_us, c.ended_us, c.ns).order_by(c.id)
        )
        return [tuple(row) for row in found]


async def test_readings_are_written_as_differences(engine: AsyncEngine) -> None:
    """Counters since the start become intervals; a restart begins anew; nothing counts twice."""
    clock = MachineClock(engine)
    first = {"started_unix_ns": 10 * S, "loading_ns": S, "busy_ns": 0, "idle_ns": 4 * S}
    await clock.record_clock(
        "m", "a", first | {"now_unix_ns": 15 * S}, process_started_unix_ns=8 * S
    )
    second = first | {"now_unix_ns": 25 * S, "busy_ns": 7 * S, "idle_ns": 7 * S}
    await clock.record_clock("m", "a", second)
    await clock.record_clock("m", "a", second)
    restarted = {"started_unix_ns": 30 * S, "now_unix_ns": 33 * S, "idle_ns": 3 * S}
    await clock.record_clock("m", "a", restarted)
    assert await _rows(engine) == [
        ("a", "startup", 8 * US, 10 * US, 2 * S),
        ("a", "loading", 10 * US, 11 * US, S),
        ("a", "idle", 11 * US, 15 * US, 4 * S),
        ("a", "busy", 15 * US, 25 * US, 7 * S),
        ("a", "idle", 15 * US, 25 * US, 3 * S),
        ("a", "idle", 30 * US, 33 * US, 3 * S),
    ]


async def test_runs_can_be_noted_while_they_last(engine: AsyncEngine) -> None:
    """Noting a run again appends what is new; another start is another run."""
    clock = MachineClock(engine)
    for start, end in ((0, 10), (0, 25), (0, 25), (30, 31)):
        await clock.record_run("m", "a", start * S, end * S)
    assert [row[2:4] for row in await _rows(engine)] == [
        (0, 10 * US),
        (10 * US, 25 * US),
        (30 * US, 31 * US),
    ]
    with pytest.raises(ValueError, match="ends before"):
        await clock.record("m", "a", "run", 2, 1)


async def test_old_processes_write_rarely_and_lose_nothing(engine: AsyncEngine) -> None:
    """Polled every 10 s for an hour: about a row a minute, and all of the time in the end."""
    clock = MachineClock(engine)
    for at_s in range(10, 3601, 10):
        await clock.record_run("m", "a", 0, at_s * S)
        reading = {"started_unix_ns": S, "now_unix_ns": at_s * S, "idle_ns": (at_s - 1) * S}
        await clock.record_clock("m", "a", reading)
    await clock.record_clock("m", "a", {"started_unix_ns": 3605 * S, "now_unix_ns": 3606 * S})
    await clock.record_run("m", "a", 3601 * S, 3606 * S)
    await clock.aclose()
    rows = await _rows(engine)
    assert len(rows) < 400
    sums = dict.fromkeys(("run", "idle", "startup"), 0)
    for _, kind, _, _, ns in rows:
        sums[kind] += ns
    assert sums["run"] == 3605 * S
    assert sums["idle"] == 3599 * S


async def test_failed_reading_is_carried_by_the_next(database_url: str) -> None:
    """An engine that was silent for a while has all its totals in the next reading."""
    clock = MachineClock(database_url)
    reading = {"started_unix_ns": S, "now_unix_ns": 5 * S, "idle_ns": 4 * S}
    await clock.record_clock("m", "b", reading)
    await clock.record_clock("m", "a", reading)
    assert [(row[0], row[4]) for row in await _rows(clock._engine)] == [("b", 4 * S), ("a", 4 * S)]
    await clock.aclose()


def test_machine_with_two_engines_runs_once() -> None:
    """Run time is the union; idle the least; loading what no other's work hides."""
    found = sweep(
        [
            _interval("a", "run", 0, 100),
            _interval("b", "run", 50, 150),
            _interval("a", "idle", 0, 100, 60),
            _interval("a", "busy", 0, 100, 40),
            _interval("b", "loading", 50, 60),
            _interval("b", "idle", 60, 150, 90),
        ],
        0,
        1000 * US,
    )
    # 0–50: a alone, 60% idle; 50–60: b loads beside 40% busy; 60–100: 60% idle; then b alone
    assert found == MachineHours(
        run_ns=150 * S, idle_ns=(30 + 24 + 50) * S, loading_ns=6 * S, startup_ns=0
    )


def test_period_cuts_intervals_in_proportion() -> None:
    """Half of an interval has half of its nanoseconds."""
    rows = [_interval("a", "run", 0, 10), _interval("a", "idle", 0, 10, 4)]
    assert sweep(rows, 5 * US, 10 * US) == MachineHours(run_ns=5 * S, idle_ns=2 * S)
    assert sweep(rows, 10 * US, 20 * US) == MachineHours()


_intervals = st.builds(
    lambda backend, kind, start, length, part: Interval(
        backend, kind, start * US, (start + length) * US, round(length * S * part)
    ),
    st.sampled_from("abc"),
    st.sampled_from(["run", "idle", "busy", "loading", "startup"]),
    st.integers(0, 50),
    st.integers(0, 50),
    st.floats(0, 1),
)


@given(st.lists(_intervals, max_size=12))
def test_parts_never_exceed_the_time_there_was(intervals: list[Interval]) -> None:
    """Idle, start-up and loading together fit into the covered time, whatever was reported."""
    found = sweep(intervals, 0, 200 * US)
    present = [Interval(i.backend, "run", i.started_us, i.ended_us, 0) for i in intervals]
    covered = sweep(present, 0, 200 * US)
    parts = (found.idle_ns, found.startup_ns, found.loading_ns)
    assert min(parts) >= 0
    assert sum(parts) <= covered.run_ns
