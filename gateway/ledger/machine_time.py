"""Measured machine time: process runs by the supervisor, loading, busy and idle by the engines.

Each kind is measured by itself and none is computed from another, so that what the charges do not
explain shows up in reports as unattributed.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from sqlalchemy import insert

from gateway.ledger.database import open_engine
from gateway.ledger.tables import machine_time

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

MachineKind = Literal["run", "startup", "loading", "busy", "idle"]
_COUNTED: tuple[MachineKind, ...] = ("loading", "busy", "idle")
_SAME_START_NS = 1_000_000_000
"""Two readings whose process starts differ by less belong to the same process."""


class _Reading(Struct, frozen=True):
    started_ns: int
    now_ns: int
    totals: tuple[int, ...]
    """In the order of _COUNTED."""


class _Run(Struct):
    started_ns: int
    written_ns: int
    seen_ns: int


class MachineClock:
    """Writes `machine_time` rows. One per machine's supervisor.

    Args:
        database: an async URL (the clock owns the engine then) or an open engine.
    """

    def __init__(self, database: "str | AsyncEngine") -> None:
        self._owned = isinstance(database, str)
        self._engine = open_engine(database) if isinstance(database, str) else database
        self._runs: dict[tuple[str, str], _Run] = {}
        """By (machine, backend), as all below."""
        self._last: dict[tuple[str, str], _Reading] = {}
        """Up to which rows are written."""
        self._late: dict[tuple[str, str], _Reading] = {}
        """Seen since then."""

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
        if run.seen_ns - run.written_ns >= _spacing_ns(run.seen_ns - run.started_ns):
            await self._finish_run(key)

    async def _finish_run(self, key: tuple[str, str]) -> None:
        run = self._runs.get(key)
        if run is not None and run.seen_ns > run.written_ns:
            seen_ns = run.seen_ns
            await self.record(*key, "run", run.written_ns, seen_ns)
            run.written_ns = seen_ns

    async def record_clock(
        self,
        machine: str,
        backend: str,
        reading: Mapping[str, Any],
        *,
        process_started_unix_ns: int | None = None,
    ) -> None:
        """Append what an engine's clock counted since the last reading of the same process.

        Args:
            reading: `GET /clock`: started_unix_ns, now_unix_ns, and loading_ns, busy_ns, idle_ns
                counted since the start.
            process_started_unix_ns: when the supervisor started the process; from there to the
                engine's own start is start-up. None: as the last `record_run` said.
        """
        key = (machine, backend)
        read = _read(reading)
        late = self._late.pop(key, None)
        if late is not None and not _continues(late, read):
            await self._append(key, late, None)
        last = self._last.get(key)
        if last is not None and _continues(last, read):
            young_ns = _spacing_ns(read.now_ns - read.started_ns)
            if read.now_ns - last.now_ns < young_ns:
                self._late[key] = read  # the next reading, or the end, brings its totals
                return
        await self._append(key, read, process_started_unix_ns)

    async def _append(self, key: tuple[str, str], read: _Reading, spawned_ns: int | None) -> None:
        last = self._last.get(key)
        rows: list[dict[str, Any]] = []
        started_ns, now_ns = read.started_ns, read.now_ns
        if last is None or not _continues(last, read):
            last = _Reading(started_ns, started_ns, (0,) * len(_COUNTED))
            run = self._runs.get(key)
            spawned_ns = spawned_ns or (run.started_ns if run else started_ns)
            if spawned_ns < started_ns:
                rows.append(_row(*key, "startup", spawned_ns, started_ns))
        first = last.now_ns == started_ns
        loaded_ns = min(started_ns + read.totals[0], now_ns)
        for kind, before, after in zip(_COUNTED, last.totals, read.totals, strict=True):
            if after <= before or now_ns <= last.now_ns:
                continue
            if kind == "loading":
                rows.append(_row(*key, kind, started_ns, loaded_ns, after - before))
            else:  # not before it was loaded
                begin_ns = min(loaded_ns, now_ns - 1) if first else last.now_ns
                rows.append(_row(*key, kind, begin_ns, now_ns, after - before))
        await self._write(rows)
        self._last[key] = read

    async def _write(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            async with self._engine.begin() as connection:
                await connection.execute(insert(machine_time), rows)

    async def aclose(self) -> None:
        """Append what waits, and close the engine if it is the clock's own."""
        for key in list(self._runs):
            await self._finish_run(key)
        for key, late in self._late.items():
            await self._append(key, late, None)
        self._late.clear()
        if self._owned:
            await self._engine.dispose()


def _spacing_ns(age_ns: int) -> int:
    """How much time one row may cover: fine at first, a minute once a process is 20 minutes old."""
    return min(age_ns // 20, 60_000_000_000)


def _read(reading: Mapping[str, Any]) -> _Reading:
    now_ns = int(reading.get("now_unix_ns") or time.time_ns())
    since_ns = int(reading.get("since_start_ns") or 0)
    started_ns = int(reading.get("started_unix_ns") or now_ns - since_ns)
    totals = tuple(int(reading.get(f"{kind}_ns") or 0) for kind in _COUNTED)
    return _Reading(started_ns, now_ns, totals)


def _continues(last: _Reading, read: _Reading) -> bool:
    """Whether both are of one process."""
    same = abs(last.started_ns - read.started_ns) < _SAME_START_NS
    return same and all(a <= b for a, b in zip(last.totals, read.totals, strict=True))


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
