"""What the supervisor writes down of its processes' machines, on processes that really run."""

import asyncio
import sys
import time
from pathlib import Path

from sqlalchemy import select

from gateway.ledger.database import open_engine
from gateway.ledger.machine_report import (
    Interval,
    add_up,
    machine_intervals,
    measured_until_us,
)
from gateway.ledger.tables import machine_time, metadata
from gateway.processes.machine_watch import MachineWatch
from gateway.processes.process import Child, Spec
from gateway.settings import BackendSettings, Settings

_IDLE_ENGINE = """
import time
from backends.meter import MeterSlot
MeterSlot.from_environment().take(ends=True)
print(flush=True)
time.sleep(60)
"""


async def _measured(url: str) -> list[Interval]:
    engine = open_engine(url)
    async with engine.connect() as connection:
        found = await machine_intervals(connection, 0, 2**62)
    await engine.dispose()
    (intervals,) = found.values()
    return intervals


async def test_stopped_machine_has_all_of_its_idle_time_at_once(tmp_path: Path) -> None:
    """The last reading ends with the process, though it is taken later: a report that is asked
    right then finds run time and idle time up to the same moment, and cuts neither."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"
    engine = open_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    backend = BackendSettings(name="small", kind="engine", model="bundled:small")
    watch = MachineWatch(Settings(backends=[backend]), [backend], tmp_path)
    command = (sys.executable, "-c", _IDLE_ENGINE)
    spec = Spec(name="small", command=command, env=watch.env(backend, "small"))
    child = Child(spec, on_started=watch.started, on_stopped=watch.stopped)
    watch.open(url)
    await child.start()
    for _ in range(1500):
        if watch._meters["local"].read().idle_ns:
            break
        await asyncio.sleep(0.02)
    await watch.read([child], None)
    await child.stop()
    for _ in range(2):
        await asyncio.sleep(0.1)  # the look comes after the end: Redis stops meanwhile
        await watch.read([child], None)
    idle_ns = watch._meters["local"].read().idle_ns
    assert idle_ns > 0
    await watch.aclose()

    intervals = await _measured(url)
    until_us = measured_until_us(intervals, round(time.time() * 1e6))
    (hours,) = add_up(intervals, [0, until_us])
    assert hours.idle_ns == idle_ns
    assert max(i.ended_us for i in intervals if i.kind == "run") == until_us
    assert hours.run_ns >= idle_ns
    async with engine.connect() as connection:
        ends = (await connection.execute(select(machine_time.c.ended_us))).scalars().all()
    await engine.dispose()
    assert max(ends) == until_us
