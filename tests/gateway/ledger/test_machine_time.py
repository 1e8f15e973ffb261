"""Machine time: written as measured, added up, cut where a period cuts it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.meter import MeterReading, SlotReading
from gateway.ledger.machine_report import Interval, MachineHours, add_up
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.tables import machine_time

S = 10**9
US = 10**6
"""Microseconds in a second."""
HOUR_S = 3600


def _interval(
    backend: str, kind: str, start_s: int, end_s: int, s: float | None = None
) -> Interval:
    ns = (end_s - start_s) * S if s is None else round(s * S)
    return Interval(backend, kind, start_s * US, end_s * US, ns)


def _reading(idle_s: int, **slots: tuple[int, int, int, int]) -> MeterReading:
    """slots: (startup, loading, working, lost) seconds."""
    return MeterReading(
        idle_ns=idle_s * S,
        slots={
            name: SlotReading(
                startup_ns=startup * S,
                loading_ns=loading * S,
                working_ns=work * S,
                lost_ns=lost * S,
            )
            for name, (startup, loading, work, lost) in slots.items()
        },
    )


async def _rows(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    c = machine_time.c
    async with engine.connect() as connection:
        found = await connection.execute(
            select(c.backend, c.kind, c.started_us, c.ended_us, c.ns).order_by(c.id)
        )
        return [tuple(row) for row in found]


async def test_meter_is_written_as_differences(engine: AsyncEngine) -> None:
    """Totals become intervals, from the first process's start on; nothing counts twice."""
    clock = MachineClock(engine)
    await clock.record_run("m", "a", 8 * S, 15 * S)
    first = _reading(3, a=(2, 1, 1, 0))
    await clock.record_meter("m", first, 15 * S)
    second = _reading(6, a=(2, 1, 8, 1))
    await clock.record_meter("m", second, 25 * S)
    await clock.record_meter("m", second, 25 * S)
    await clock.aclose()
    assert await _rows(engine) == [
        ("a", "run", 8 * US, 15 * US, 7 * S),
        ("", "idle", 8 * US, 15 * US, 3 * S),
        ("a", "startup", 8 * US, 15 * US, 2 * S),
        ("a", "loading", 8 * US, 15 * US, S),
        ("a", "busy", 8 * US, 15 * US, S),
        ("", "idle", 15 * US, 25 * US, 3 * S),
        ("a", "busy", 15 * US, 25 * US, 7 * S),
        ("a", "lost", 15 * US, 25 * US, S),
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
    """Polled every 10 s for two hours: about a row a minute, all of the time in the end, and a
    row's end at the end of each hour."""
    clock = MachineClock(engine)
    for at_s in range(10, 2 * HOUR_S + 5, 10):
        await clock.record_run("m", "a", 0, at_s * S)
        await clock.record_meter("m", _reading(at_s - 1, a=(1, 0, 0, 0)), at_s * S)
    await clock.aclose()
    rows = await _rows(engine)
    assert len(rows) < 700
    sums = dict.fromkeys(("run", "idle", "startup"), 0)
    for _, kind, _, _, ns in rows:
        sums[kind] += ns
    assert sums == {"run": 2 * HOUR_S * S, "idle": (2 * HOUR_S - 1) * S, "startup": S}
    for kind in ("run", "idle"):
        assert HOUR_S * US in {row[3] for row in rows if row[1] == kind}


async def test_refused_reading_is_carried_by_the_next(engine: AsyncEngine) -> None:
    """What the database did not take stands in the next row."""
    clock = MachineClock(engine)
    await clock.record_run("m", "a", 0, 5 * S)
    await _rename(engine, "machine_time", "away")
    with pytest.raises(SQLAlchemyError):
        await clock.record_meter("m", _reading(4), 5 * S)
    await _rename(engine, "away", "machine_time")
    await clock.record_meter("m", _reading(8), 9 * S)
    assert [row for row in await _rows(engine) if row[1] == "idle"] == [
        ("", "idle", 0, 9 * US, 8 * S)
    ]


async def _rename(engine: AsyncEngine, old: str, new: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


def test_machine_with_two_engines_runs_once() -> None:
    """Run time is the union of the processes'; shares of the machine are added up."""
    found = add_up(
        [
            _interval("a", "run", 0, 100),
            _interval("b", "run", 50, 150),
            _interval("", "idle", 0, 150, 60),
            _interval("a", "busy", 0, 100, 40),
            _interval("b", "busy", 50, 150, 30),
            _interval("b", "loading", 50, 60),
            _interval("a", "lost", 0, 100, 5),
        ],
        [0, 1000 * US],
    )
    assert found == [
        MachineHours(
            run_ns=150 * S,
            idle_ns=60 * S,
            loading_ns=10 * S,
            lost_ns=5 * S,
            busy_ns={"a": 40 * S, "b": 30 * S},
        )
    ]


def test_period_cuts_intervals_in_proportion() -> None:
    """Half of an interval has half of its nanoseconds."""
    rows = [_interval("a", "run", 0, 10), _interval("", "idle", 0, 10, 4)]
    edges = [5 * US, 10 * US, 20 * US]
    assert add_up(rows, edges) == [MachineHours(run_ns=5 * S, idle_ns=2 * S), MachineHours()]


_intervals = st.builds(
    lambda backend, kind, start, length, part: Interval(
        backend, kind, start * US, (start + length) * US, round(length * S * part)
    ),
    st.sampled_from("abc"),
    st.sampled_from(["run", "idle", "busy", "loading", "startup", "lost"]),
    st.integers(0, 50),
    st.integers(1, 50),
    st.floats(0, 1),
)


@given(
    st.lists(_intervals, max_size=12),
    st.lists(st.integers(0, 110), min_size=2, max_size=6, unique=True),
)
def test_pieces_of_a_period_sum_to_the_period(intervals: list[Interval], cuts: list[int]) -> None:
    """However it is cut, nothing is counted twice or left out (a nanosecond per cut aside)."""
    edges = [cut * US for cut in sorted(cuts)]
    pieces, (whole,) = add_up(intervals, edges), add_up(intervals, [edges[0], edges[-1]])
    assert sum(piece.run_ns for piece in pieces) == whole.run_ns
    for name in ("idle_ns", "startup_ns", "loading_ns", "lost_ns"):
        parts = sum(getattr(piece, name) for piece in pieces)
        assert abs(parts - getattr(whole, name)) <= len(intervals) * len(edges)
