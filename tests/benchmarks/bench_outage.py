"""The ledger's database away under load: memory, disk, and whether every row arrives, once.

Rows are settled as fast as they come, so as many as an hour of traffic brings pass in a minute; a
real PostgreSQL is stopped before and started after. Exits 1 unless all of them are there, each
once, and memory grew by less than 64 MiB.
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.database import open_engine
from gateway.ledger.ledger import Ledger
from gateway.ledger.tables import charges, requests
from gateway.settings import BUILT_IN
from migrations import upgrade
from tests.benchmarks.environment import describe, write
from tests.gateway.ledger.samples import renamed, settlement
from tests.gateway.ledger.stoppable import StoppablePostgres

_AT_ONCE = 50
_PATIENCE_S = 900.0
_MOST_MIB = 64


async def _run(folder: Path, count: int) -> dict[str, Any]:
    server = await asyncio.to_thread(StoppablePostgres, folder / "pg")
    try:
        await asyncio.to_thread(upgrade, server.url)
        engine = open_engine(server.url)
        state_dir = folder / "state"
        ledger = Ledger(msgspec.structs.replace(BUILT_IN, state_dir=str(state_dir)), engine)
        await ledger.start()
        await _settle(ledger, 0, 1_000)
        await ledger.flush()
        before_mib = _peak_mib()
        await asyncio.to_thread(server.stop)
        await _settle(ledger, 1_000, count)
        waiting = ledger.state()
        files = len(list((state_dir / "journal").iterdir()))
        refused = ledger.refusal is not None
        began = time.perf_counter()
        await asyncio.to_thread(server.start)
        arrived = await ledger.flush(_PATIENCE_S)
        took_s = time.perf_counter() - began
        found = {
            "settled": count,
            "refused_meanwhile": refused,
            "waiting_in_memory": waiting["pending"],
            "journal_bytes": waiting["journal_bytes"],
            "journal_files": files,
            "memory_before_mib": before_mib,
            "memory_peak_mib": _peak_mib(),
            "all_arrived": arrived,
            "written_after_s": round(took_s, 1),
            "rows": await _rows(engine),
        }
        await ledger.aclose()
        await engine.dispose()
        return found
    finally:
        server.cleanup()


async def _settle(ledger: Ledger, first: int, end: int) -> None:
    template = settlement("template")
    for start in range(first, end, _AT_ONCE):
        for number in range(start, min(start + _AT_ONCE, end)):
            ledger.settle(renamed(template, f"r{number}"))
        await ledger.journalled()
        await asyncio.sleep(0)


async def _rows(engine: AsyncEngine) -> dict[str, int]:
    async with engine.connect() as connection:
        return {
            table.name: (
                await connection.execute(select(func.count()).select_from(table))
            ).scalar_one()
            for table in (requests, charges)
        }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    """Run, print, write; 0 if nothing was lost or doubled, in bounded memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=150_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this is root
        found = asyncio.run(_run(folder, asked.requests))
    whole = found["rows"] == {"requests": asked.requests, "charges": asked.requests}
    bounded = found["memory_peak_mib"] - found["memory_before_mib"] < _MOST_MIB
    workload = f"{asked.requests} requests settled while PostgreSQL was stopped"
    figures = {**describe(workload), "results": found}
    print(figures)
    write(asked.out, figures)
    return 0 if whole and bounded and found["all_arrived"] else 1


if __name__ == "__main__":
    sys.exit(main())
