"""One machine's time is handed out once, whoever works on it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.meter import (
    ABSENT,
    IDLE,
    LOADING,
    METER_ENV,
    WORKING,
    Meter,
    MeterSlot,
    process_cpu_ns,
)


class FakeMachine:
    """A clock and the CPU times of processes, by pid."""

    def __init__(self) -> None:
        self.now = 1_000
        self.cpu: dict[int, int | None] = {}

    def meter(self, path: Path, *names: str) -> Meter:
        meter = Meter(path, names, now_ns=lambda: self.now, cpu_ns=lambda pid: self.cpu.get(pid))
        for place in range(len(names)):
            self.cpu[place] = 0
            meter.enter(place, place)
            meter.change(place, IDLE)
        return meter

    def run(self, wall: int, *cpu: int) -> None:
        """Let time pass; each process takes so much of the CPU."""
        self.now += wall
        for pid, ns in enumerate(cpu):
            self.cpu[pid] = (self.cpu[pid] or 0) + ns


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


def test_lone_worker_is_charged_all_of_the_time(machine: FakeMachine, tmp_path: Path) -> None:
    """Whatever CPU time it took: nobody else could have been asked to pay."""
    meter = machine.meter(tmp_path / "m", "a", "b")
    slot = MeterSlot(meter, 0)
    machine.run(50)
    slot.begin()
    machine.run(100, 10)
    assert slot.take(ends=False) == 100
    machine.run(7)
    assert slot.take(ends=True) == 7
    machine.run(30)
    assert meter.read().idle_ns == 50 + 30


def test_workers_share_in_proportion_to_their_cpu_time(
    machine: FakeMachine, tmp_path: Path
) -> None:
    """Only while both work, only by what each took meanwhile; together it is the time there was."""
    meter = machine.meter(tmp_path / "m", "a", "b")
    a, b = MeterSlot(meter, 0), MeterSlot(meter, 1)
    a.begin()
    machine.run(100, 200)  # b is idle: its background noise does not count
    b.begin()
    machine.run(100, 30, 90)
    assert a.take(ends=True) == 100 + 25
    machine.run(10, 0, 20)
    assert b.take(ends=True) == 75 + 10
    machine.run(40)
    found = meter.read()
    assert found.idle_ns == 40
    assert sum(slot.working_ns for slot in found.slots.values()) == 210


def test_loading_takes_its_share_too(machine: FakeMachine, tmp_path: Path) -> None:
    """A process that loads beside one that answers pays for loading, not the other's requests."""
    meter = machine.meter(tmp_path / "m", "a", "b")
    a = MeterSlot(meter, 0)
    meter.leave(1)
    a.begin()
    meter.enter(1, 1)
    machine.run(100, 50, 50)
    meter.change(1, LOADING)
    machine.run(40, 30, 10)
    meter.change(1, IDLE)
    assert a.take(ends=True) == 50 + 30
    b = meter.read().slots["b"]
    assert (b.startup_ns, b.loading_ns, b.working_ns) == (50, 10, 0)


def test_gpu_engine_weighs_as_a_whole_device(machine: FakeMachine, tmp_path: Path) -> None:
    """Two engines on a GPU share it evenly, however little CPU time one of them takes."""
    meter = machine.meter(tmp_path / "m", "a", "b")
    a, b = MeterSlot(meter, 0), MeterSlot(meter, 1)
    a.on_gpu()
    b.on_gpu()
    a.begin()
    b.begin()
    machine.run(100, 100, 1)
    assert (a.take(ends=True), b.take(ends=True)) == (50, 50)


def test_dead_worker_loses_what_it_had_not_reported(machine: FakeMachine, tmp_path: Path) -> None:
    """Time after its death is the others'; what it had told somebody is not lost."""
    meter = machine.meter(tmp_path / "m", "a", "b")
    a, b = MeterSlot(meter, 0), MeterSlot(meter, 1)
    a.begin()
    machine.run(60, 60)
    a.report(a.take(ends=False) - 10)
    machine.run(40, 40)
    a.take(ends=False)
    machine.cpu[0] = None
    b.begin()
    machine.now, machine.cpu[1] = machine.now + 20, 20
    assert b.take(ends=True) == 20
    meter.leave(0)
    assert meter.read().slots["a"].lost_ns == 10 + 40
    assert meter.read().idle_ns == 0
    machine.run(5)
    assert meter.read().idle_ns == 5  # b is there and idle
    meter.change(1, ABSENT)
    machine.run(9)
    assert meter.read().idle_ns == 5  # nobody is there


_events = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["begin", "take", "end", "leave", "enter"]),
        st.integers(0, 1_000),
        st.tuples(*(st.integers(0, 500) for _ in range(3))),
    ),
    max_size=60,
)


@given(_events)
@settings(max_examples=200, deadline=None)
def test_shares_and_idle_are_all_of_the_time_once(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, str, int, tuple[int, ...]]]
) -> None:
    """Whatever processes do: shares + idle + nobody there = time, to the nanosecond."""
    machine = FakeMachine()
    meter = machine.meter(tmp_path_factory.mktemp("meter") / "m", "a", "b", "c")
    states, nobody, began = [IDLE] * 3, 0, machine.now
    for place, act, wall, cpu in events:
        machine.run(wall, *cpu)
        nobody += wall * (not any(states))
        if act == "enter":
            meter.enter(place, place)
            states[place] = LOADING
        elif act == "leave":
            meter.leave(place)
            states[place] = ABSENT
        elif states[place]:
            states[place] = IDLE if act == "end" else WORKING
            meter.change(place, states[place])
    found = meter.read()
    shares = sum(s.startup_ns + s.loading_ns + s.working_ns for s in found.slots.values())
    assert shares + found.idle_ns + nobody == machine.now - began
    assert all(0 <= slot.lost_ns <= slot.working_ns for slot in found.slots.values())


def test_file_that_is_no_meter_is_refused(tmp_path: Path) -> None:
    """A foreign file is not written to."""
    path = tmp_path / "other"
    path.write_bytes(b"x" * 4096)
    with pytest.raises(ValueError, match="no meter"):
        Meter(path)


def test_without_a_supervisor_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """`headgate backend` alone charges its own wall time."""
    monkeypatch.delenv(METER_ENV, raising=False)
    assert MeterSlot.from_environment() is None


_WORKER = """
import time
from backends.meter import MeterSlot
slot = MeterSlot.from_environment()
slot.take(ends=True)
slot.begin()
print("ready", flush=True)
until, pause = time.monotonic() + 2.0, {pause}
while time.monotonic() < until:
    began = time.monotonic()
    while time.monotonic() < began + 0.01:
        pass
    time.sleep(pause)
    slot.take(ends=False)
print(slot.take(ends=True), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="CPU clocks of other processes")
def test_real_processes_share_real_time(tmp_path: Path) -> None:
    """Two processes at once: together no more than the time; the busier one has the most."""
    meter = Meter(tmp_path / "m", ["eager", "lazy"])
    children = []
    for place, pause in enumerate((0.0, 0.03)):
        child = subprocess.Popen(
            [sys.executable, "-c", _WORKER.format(pause=pause)],
            env={**os.environ, METER_ENV: f"{meter.path}:{place}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        meter.enter(place, child.pid)
        children.append(child)
    began = time.monotonic_ns()
    for child in children:
        assert child.wait(60) == 0
    passed = time.monotonic_ns() - began
    found = meter.read()
    eager, lazy = found.slots["eager"], found.slots["lazy"]
    assert eager.working_ns + lazy.working_ns <= passed
    assert eager.working_ns > lazy.working_ns > 0
    assert eager.startup_ns + eager.loading_ns > 0


@pytest.mark.skipif(sys.platform != "linux", reason="CPU clocks of other processes")
def test_cpu_time_of_a_killed_process_is_unknown() -> None:
    """A pid that is gone has no clock."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.2)
    assert (process_cpu_ns(child.pid) or 0) > 0
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert process_cpu_ns(child.pid) is None


def test_asking_processes_share_by_how_much_they_ask(machine: FakeMachine, tmp_path: Path) -> None:
    """Processes that only ask a server there weigh what they say, not their own CPU time."""
    meter = machine.meter(tmp_path / "m", "gateway-0", "gateway-1")
    a, b = MeterSlot(meter, 0), MeterSlot(meter, 1)
    a.begin(weight=3)
    b.begin(weight=1)
    machine.run(100, 90, 1)
    assert (a.take(ends=True), b.take(ends=True)) == (75, 25)


def test_place_is_claimed_from_nobody_alive(tmp_path: Path) -> None:
    """Places before the first, and those of living processes, are left alone."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    meter = Meter(tmp_path / "m", ["engine", "gateway-0", "gateway-1"])
    meter.enter(1, child.pid)
    slot = Meter(meter.path).claim(1)
    slot.begin()
    time.sleep(0.01)
    assert slot.take(ends=True) > 0
    assert meter.read().slots["gateway-1"].working_ns > 0
    again = Meter(meter.path)
    assert again.claim(1)  # the same process may have its place anew
    child.kill()
    child.wait()
    meter.enter(2, os.getppid())
    assert Meter(meter.path).claim(1)
    assert meter.read().slots["gateway-0"].startup_ns > 0
    meter.enter(1, os.getppid())
    with pytest.raises(ValueError, match="no place"):
        Meter(meter.path).claim(1)
