"""Measured machine time: process runs by the supervisor, loading, busy and idle by the engines.

Each kind is measured by itself and none is computed from another, so that what the charges do not
explain shows up in reports as unattributed.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
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


class MachineClock:
    """Writes `machine_time` rows. One per machine's supervisor.

    Args:
        database: an async URL (the clock owns the engine then) or an open engine.
    """

    def __init__(self, database: "str | AsyncEngine") -> None:
        self._owned = isinstance(database, str)
        self._engine = open_engine(database) if isinstance(database, str) else database
        self._runs: dict[tuple[str, str], tuple[int, int]] = {}
        """(machine, backend) → (start of its process, recorded until)."""
        self._last: dict[tuple[str, str], _Reading] = {}

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

        May be called again and again while it runs: each call appends what is new.
        """
        key = (machine, backend)
        start, until = self._runs.get(key, (started_unix_ns, started_unix_ns))
        if start != started_unix_ns:
            start, until = started_unix_ns, started_unix_ns
        if ended_unix_ns > until:
            await self.record(machine, backend, "run", until, ended_unix_ns)
            until = ended_unix_ns
        self._runs[key] = (start, until)

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
        now_ns = int(reading.get("now_unix_ns") or time.time_ns())
        since_ns = int(reading.get("since_start_ns") or 0)
        started_ns = int(reading.get("started_unix_ns") or now_ns - since_ns)
        totals = tuple(int(reading.get(f"{kind}_ns") or 0) for kind in _COUNTED)
        last = self._last.get(key)
        rows: list[dict[str, Any]] = []
        if last is None or not _continues(last, started_ns, totals):
            last = _Reading(started_ns, started_ns, (0,) * len(_COUNTED))
            spawned_ns = process_started_unix_ns or self._runs.get(key, (started_ns, 0))[0]
            if spawned_ns < started_ns:
                rows.append(_row(machine, backend, "startup", spawned_ns, started_ns))
        for kind, before, after in zip(_COUNTED, last.totals, totals, strict=True):
            if after > before and now_ns > last.now_ns:
                ns = after - before
                end_ns = min(started_ns + ns, now_ns) if kind == "loading" else now_ns
                begin_ns = started_ns if kind == "loading" else last.now_ns
                if kind != "loading" and before == 0 and last.now_ns == started_ns:
                    begin_ns = min(started_ns + totals[0], now_ns - 1)  # not before it was loaded
                rows.append(_row(machine, backend, kind, begin_ns, end_ns, ns))
        await self._write(rows)
        self._last[key] = _Reading(started_ns, now_ns, totals)

    async def _write(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            async with self._engine.begin() as connection:
                await connection.execute(insert(machine_time), rows)

    async def aclose(self) -> None:
        """Close the engine, if it is the clock's own."""
        if self._owned:
            await self._engine.dispose()


async def poll_clocks(
    clock: MachineClock,
    sources: Mapping[str, tuple[str, Callable[[], Awaitable[Mapping[str, Any] | None]]]],
) -> list[str]:
    """Read every engine's clock once.

    Args:
        sources: backend → (machine, a call that gives its `/clock`, None when it does not answer).

    Returns:
        The backends that did not answer: the next reading carries their totals.
    """
    silent = []
    for backend, (machine, read) in sources.items():
        reading = await read()
        if reading is None:
            silent.append(backend)
        else:
            await clock.record_clock(machine, backend, reading)
    return silent


def _continues(last: _Reading, started_ns: int, totals: tuple[int, ...]) -> bool:
    same = abs(last.started_ns - started_ns) < _SAME_START_NS
    return same and all(a <= b for a, b in zip(last.totals, totals, strict=True))


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
