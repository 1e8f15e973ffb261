"""Measured machine time: process runs by the supervisor, everything else by the machine's meter.

Each kind is measured by itself and none is computed from another, so that what the charges do not
explain shows up in reports as unattributed. Rows of `machine_time`:

- run: a process was there (its start and end, as the supervisor saw them);
- idle (backend ""): processes were there and none had a request, by the engines' own stamps;
- startup, loading: a process's share of the machine before it could take requests;
- busy: its share while it had requests; no charge comes of it, it tells where charges are missing;
- lost: the part of that which brought nobody anything: rejected drafts, work that a preemption
  threw away, tokens for clients that had left, requests that died with their process.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import insert

from backends.meter import MeterReading
from gateway.ledger.database import insert_once, open_engine
from gateway.ledger.machine_report import recorded_machines
from gateway.ledger.tables import machine_prices, machine_time
from gateway.settings.prices import MachineSettings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

MachineKind = Literal["run", "idle", "startup", "loading", "busy", "lost"]
MACHINE = ""
"""In place of a backend: the machine as a whole."""
_HOUR_NS = 3_600_000_000_000
_MOMENT_NS = 1_000_000
_OF_SLOT: dict[MachineKind, str] = {
    "startup": "startup_ns",
    "loading": "loading_ns",
    "busy": "working_ns",
    "lost": "lost_ns",
}


class _Run(Struct):
    started_ns: int
    written_ns: int
    seen_ns: int


class _Written(Struct, frozen=True):
    """Up to when and to what totals a meter's rows are written."""

    began_ns: int
    at_ns: int
    totals: dict[tuple[str, MachineKind], int]


class MachineClock:
    """Writes `machine_time` rows. One per supervisor.

    Args:
        database: an async URL (the clock owns the engine then) or an open engine.
    """

    def __init__(self, database: "str | AsyncEngine") -> None:
        self._owned = isinstance(database, str)
        self._engine = open_engine(database) if isinstance(database, str) else database
        self._runs: dict[tuple[str, str], _Run] = {}
        """By (machine, backend)."""
        self._written: dict[str, _Written] = {}
        """By machine."""
        self._late: dict[str, tuple[MeterReading, int]] = {}
        """Seen since then."""

    async def record_prices(self, machines: Iterable[MachineSettings], now_us: int) -> None:
        """Note how machines are configured from now on, where that is new; of one that was never
        seen, from the beginning on."""
        async with self._engine.begin() as connection:
            known = await recorded_machines(connection)
            rows = [
                {
                    "machine": machine.name,
                    "since_us": now_us if machine.name in known else 0,
                    "configured": msgspec.to_builtins(machine),
                }
                for machine in machines
                if machine.name not in known or known[machine.name][-1][1] != machine
            ]
            if rows:
                dialect = connection.dialect.name
                await connection.execute(insert_once(dialect, machine_prices), rows)

    async def record(
        self,
        machine: str,
        backend: str,
        kind: MachineKind,
        started_unix_ns: int,
        ended_unix_ns: int,
        ns: int | None = None,
    ) -> None:
        """Append one measured interval; `ns` of it were of this kind (None: all).

        Raises:
            ValueError: it ends before it starts.
            SQLAlchemyError: the database does not take it; nothing was written.
        """
        await self._write([_row(machine, backend, kind, started_unix_ns, ended_unix_ns, ns)])

    async def record_run(
        self, machine: str, backend: str, started_unix_ns: int, ended_unix_ns: int
    ) -> None:
        """Note that a process runs since `started` and ran until `ended`.

        May be called again and again while it runs: what is new is appended now or, when the
        process is old, with a later call, another process's first or `aclose`.
        """
        key = (machine, backend)
        run = self._runs.get(key)
        if run is None or run.started_ns != started_unix_ns:
            await self._finish_run(key)
            run = self._runs[key] = _Run(started_unix_ns, started_unix_ns, started_unix_ns)
        run.seen_ns = max(run.seen_ns, ended_unix_ns)
        if _due(run.started_ns, run.written_ns, run.seen_ns):
            await self._finish_run(key)

    async def _finish_run(self, key: tuple[str, str]) -> None:
        run = self._runs.get(key)
        if run is not None and run.seen_ns > run.written_ns:
            seen_ns = run.seen_ns
            await self.record(*key, "run", run.written_ns, seen_ns)
            run.written_ns = seen_ns

    async def record_meter(self, machine: str, reading: MeterReading, now_unix_ns: int) -> None:
        """Append what the machine's meter counted since the last reading that was written.

        The first one counts from the start of the machine's first process. What the database does
        not take, the next reading carries. Of a machine that stopped, its rows end with its last
        process, not with the look: a report cuts what lies past its last run.
        """
        runs = [run for (of, _), run in self._runs.items() if of == machine]
        written = self._written.get(machine)
        if written is None:
            began_ns = min((run.started_ns for run in runs), default=now_unix_ns)
            written = self._written[machine] = _Written(began_ns, began_ns, {})
        if not reading.running:
            if _totals(reading) == written.totals:
                return
            ended_ns = max((run.seen_ns for run in runs), default=now_unix_ns)
            # What the look before could not know yet (work that died) needs a moment of its own.
            now_unix_ns = max(ended_ns, written.at_ns + _MOMENT_NS)
        self._late[machine] = (reading, now_unix_ns)
        if _due(written.began_ns, written.at_ns, now_unix_ns):
            await self._finish_meter(machine)

    async def _finish_meter(self, machine: str) -> None:
        reading, now_ns = self._late[machine]
        written = self._written[machine]
        if now_ns <= written.at_ns:
            return
        totals = _totals(reading)
        rows = [
            _row(machine, backend, kind, written.at_ns, now_ns, ns)
            for (backend, kind), total in totals.items()
            if (ns := total - written.totals.get((backend, kind), 0)) > 0
        ]
        await self._write(rows)
        self._written[machine] = _Written(written.began_ns, now_ns, totals)
        del self._late[machine]

    async def _write(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            async with self._engine.begin() as connection:
                await connection.execute(insert(machine_time), rows)

    async def aclose(self) -> None:
        """Append what waits, and close the engine if it is the clock's own."""
        for key in list(self._runs):
            await self._finish_run(key)
        for machine in list(self._late):
            await self._finish_meter(machine)
        if self._owned:
            await self._engine.dispose()


def _totals(reading: MeterReading) -> dict[tuple[str, MachineKind], int]:
    totals: dict[tuple[str, MachineKind], int] = {(MACHINE, "idle"): reading.idle_ns}
    for backend, slot in reading.slots.items():
        for kind, name in _OF_SLOT.items():
            totals[backend, kind] = getattr(slot, name)
    return totals


def _due(began_ns: int, written_ns: int, now_ns: int) -> bool:
    """Whether a row is wanted: often at first, a minute's once 20 minutes have passed, and none
    across an hour's end if it can be helped."""
    if now_ns // _HOUR_NS > written_ns // _HOUR_NS:
        return True
    return now_ns - written_ns >= min((now_ns - began_ns) // 20, 60_000_000_000)


def _row(
    machine: str,
    backend: str,
    kind: MachineKind,
    started_ns: int,
    ended_ns: int,
    ns: int | None = None,
) -> dict[str, Any]:
    if ended_ns < started_ns:
        raise ValueError(f"{kind} of {backend!r} ends before it starts: {started_ns}, {ended_ns}")
    return {
        "machine": machine,
        "backend": backend,
        "kind": kind,
        "started_us": started_ns // 1000,
        "ended_us": ended_ns // 1000,
        "ns": ended_ns - started_ns if ns is None else ns,
    }
