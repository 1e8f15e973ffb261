"""Machine time as the supervisor sees it: whose process runs where, since when, how busy.

Each machine has one meter, through which its processes share its time. Runs are written down when a
process ends and, while it is there, every few seconds; so are the meters.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from backends.meter import METER_ENV, Meter
from gateway.ledger.foreign_time import foreign_machine
from gateway.ledger.machine_costs import configured
from gateway.ledger.machine_time import MachineClock
from gateway.processes.process import Child
from gateway.settings import BackendSettings, Settings

log = structlog.get_logger(__name__)

_INTERVAL_S = 10.0


def process_names(backend: BackendSettings) -> list[str]:
    """Of the processes that serve a local backend: its own name, then `NAME#2` and so on."""
    further = range(2, backend.replicas + 1)
    return [backend.name, *(f"{backend.name}#{number}" for number in further)]


class MachineWatch:
    """One per supervisor.

    Args:
        local: the backends, and the encoder, that the supervisor starts processes for.
        run_dir: where the meters' files lie.
    """

    def __init__(self, settings: Settings, local: Sequence[BackendSettings], run_dir: Path) -> None:
        self._settings = settings
        self._clock: MachineClock | None = None
        self._priced_us: int | None = None
        """Since when the prices of now hold, until they are written down."""
        self._machines: dict[str, str] = {}
        """Process → its machine, of every process that computes."""
        self._foreign: dict[str, int] = {}
        """Machines behind other people's servers → the gateway's first place at their meter."""
        self._meters = self._make_meters(local, run_dir)
        """By machine."""

    def _make_meters(self, local: Sequence[BackendSettings], run_dir: Path) -> dict[str, Meter]:
        names: dict[str, list[str]] = {}
        foreign = {foreign_machine(self._settings, one) for one in self._settings.backends}
        for backend in local:
            machine = self._settings.machine(backend)
            if machine is not None:
                names.setdefault(machine.name, []).extend(process_names(backend))
        workers = [f"gateway-{index}" for index in range(self._settings.server.workers)]
        for name in sorted(name for name in foreign if name is not None):
            self._foreign[name] = len(names.setdefault(name, []))
            names[name] += workers
        return {
            machine: Meter(run_dir / f"{index}.meter", found)
            for index, (machine, found) in enumerate(names.items())
        }

    @property
    def foreign_meters(self) -> dict[str, tuple[str, int]]:
        """As the workers are told of them (see `Runtime`)."""
        return {
            machine: (str(self._meters[machine].path), first)
            for machine, first in self._foreign.items()
        }

    def env(self, backend: BackendSettings, name: str) -> Mapping[str, str]:
        """What tells a backend's process `name` its place at its machine's meter."""
        machine = self._settings.machine(backend)
        if machine is None:
            return {}
        self._machines[name] = machine.name
        meter = self._meters[machine.name]
        return {METER_ENV: f"{meter.path}:{meter.names.index(name)}"}

    def _metered(self, child: Child) -> tuple[Meter, int] | None:
        """A child's machine's meter and its place there."""
        machine = self._machines.get(child.spec.name)
        if machine is None:
            return None
        meter = self._meters[machine]
        return meter, meter.names.index(child.spec.name)

    def started(self, child: Child, pid: int) -> None:
        """A backend's process has been started."""
        metered = self._metered(child)
        if metered is not None:
            metered[0].enter(metered[1], pid)

    async def stopped(self, child: Child, started: float, ended: float) -> None:
        """The machine time of a process: measured here, at its start and at its end."""
        metered = self._metered(child)
        if metered is not None:
            metered[0].leave(metered[1])
            await self._note_run(self._machines[child.spec.name], child, started, ended)

    def gateway_started(self, _child: Child, pid: int) -> None:
        """Machines behind somebody else's server are the gateway's to measure."""
        for machine, first in self._foreign.items():
            self._meters[machine].enter(first, pid)

    async def gateway_stopped(self, child: Child, started: float, ended: float) -> None:
        """Nobody tells when a machine behind somebody else's server runs: it is paid for as long
        as the gateway is there to ask it."""
        for machine, first in self._foreign.items():
            meter = self._meters[machine]
            for place in range(first, len(meter.names)):
                meter.leave(place)
            await self._note_run(machine, child, started, ended)

    async def _note_run(self, machine: str, child: Child, started: float, ended: float) -> None:
        if self._clock is None:
            return
        name = child.spec.name
        try:
            await self._clock.record_run(machine, name, int(started * 1e9), int(ended * 1e9))
        except Exception as error:
            log.error("machine_time_lost", name=name, error=str(error))

    def open(self, database_url: str) -> None:
        """From now on there are tables to write to."""
        self._clock = MachineClock(database_url)
        self._priced_us = time.time_ns() // 1000

    async def _note_prices(self, clock: MachineClock) -> None:
        """What the machines are configured to cost from this start on."""
        if self._priced_us is not None:
            watched = [one for one in configured(self._settings) if one.name in self._meters]
            await clock.record_prices(watched, self._priced_us)
            self._priced_us = None

    async def keep_reading(self, helpers: Sequence[Child], gateway: Child) -> None:
        """Until cancelled."""
        while True:
            # On the hour as well: a row that crosses it could not be told to either.
            to_hour_s = 3600.0 - time.time() % 3600.0
            await asyncio.sleep(min(_INTERVAL_S, to_hour_s + 0.001))
            await self.read(helpers, gateway)

    async def read(self, helpers: Sequence[Child], gateway: Child | None) -> None:
        """Write down what runs, and what the meters show."""
        clock = self._clock
        if clock is None:
            return
        # First: writing takes time, and a row must not hold more of it than it is long.
        now_ns, readings = time.time_ns(), {m: one.read() for m, one in self._meters.items()}
        try:
            await self._note_prices(clock)
            for child in helpers:
                machine = self._machines.get(child.spec.name)
                if machine is not None and child.pid is not None:
                    started_ns = int(child.started_at * 1e9)
                    await clock.record_run(machine, child.spec.name, started_ns, now_ns)
            if gateway is not None and gateway.pid is not None:
                started_ns = int(gateway.started_at * 1e9)
                for machine in self._foreign:
                    await clock.record_run(machine, gateway.spec.name, started_ns, now_ns)
            for machine, reading in readings.items():
                await clock.record_meter(machine, reading, now_ns)
        except Exception as error:
            log.error("machine_time_lost", error=str(error))

    async def aclose(self) -> None:
        """Let go of the database and the meters' files."""
        if self._clock:
            await self._clock.aclose()
        for meter in self._meters.values():
            meter.close()
