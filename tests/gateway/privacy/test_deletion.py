"""After deletion nothing of a customer is found anywhere, and the books still agree."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.echo import EchoBackend
from gateway.ledger import audit, check, month_end, tables
from gateway.ledger.database import open_engine
from gateway.ledger.journal import Journal
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.retention import prune
from gateway.privacy import stores
from gateway.privacy.model import EXPORTS, DeletionError, Places
from gateway.settings import (
    BackendSettings,
    CacheSettings,
    DatabaseSettings,
    ExactSettings,
    SemanticSettings,
    Settings,
)
from tests.conftest import RedisServer
from tests.gateway import serving
from tests.gateway.ledger.samples import NOW, charge, settlement

CANARY = "canary-8141"
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC).timestamp()


def _settings(folder: Path, database_url: str, redis_url: str) -> Settings:
    names = ("small", "base", "enc")
    backends = [
        BackendSettings(name=n, kind="encoder" if n == "enc" else "echo", model=n) for n in names
    ]
    cache = CacheSettings(
        redis=redis_url,
        exact=ExactSettings(sampled=True),
        semantic=SemanticSettings(enabled=True, encoder="enc", timeout_s=5),
    )
    (folder / "served").mkdir(exist_ok=True)
    chosen = serving.settings(folder / "served", *backends, cache=cache)
    database = DatabaseSettings(url=database_url, audit_chain=True, flush_interval_s=0.01)
    return msgspec.structs.replace(chosen, state_dir=str(folder / "state"), database=database)


async def _serve(chosen: Settings) -> None:
    """Requests of the canary and of somebody else, through the whole gateway."""
    backends = {one.name: EchoBackend(one.name) for one in chosen.backends}
    async with serving.gateway(chosen, backends=backends) as gateway:
        for user in (CANARY, "somebody"):
            answer = await gateway.chat(
                f"I am {user}, tell me about me",
                user=user,
                headers={"x-headgate-tags": f"who={user},kind=person"},
            )
            assert answer.status_code == 200, answer.text
            again = await gateway.chat(f"I am {user}, tell me about me", user=user)
            assert again.headers["x-headgate-cache"] == "exact"
        assert gateway.parts.caches is not None
        await gateway.parts.caches.settled()
        assert await gateway.parts.ledger.flush()


async def _plant(chosen: Settings, engine: AsyncEngine) -> None:
    """The canary in every other place that knows users."""
    state = Path(chosen.state_dir)
    (state / EXPORTS).mkdir(parents=True)
    (state / EXPORTS / "november.csv").write_text(f"user,cost_usd\n{CANARY},1\n")
    (state / EXPORTS / "clean.csv").write_text("user,cost_usd\nsomebody,1\n")
    dead = Journal(state / "journal")
    dead.append(msgspec.json.encode(settlement("journalled", user=CANARY)))
    dead.close()
    refused = msgspec.json.encode(settlement("refused", user=CANARY))
    kept = msgspec.json.encode(settlement("kept", user="somebody"))
    (state / "journal" / "refused.bad").write_bytes(refused + b"\n" + kept + b"\n")
    await Repository(engine, chained=True).write([settlement("direct", user=CANARY)])
    async with engine.begin() as connection:
        scope = {"scope": f"user:{CANARY}", "window": "day", "limit_nano_usd": 1}
        await connection.execute(insert(tables.budgets).values(**scope, soft=False, created_us=0))
        await connection.execute(
            insert(tables.users).values(name=CANARY, team="search", created_us=0)
        )
        await connection.execute(
            insert(tables.feedback).values(request_id="direct", score=1, comment=CANARY, at_us=0)
        )
        held = {"id": "file-1", "team": "a", "key": "k", "user": CANARY, "created_us": 0}
        await connection.execute(insert(tables.files).values(**held, purpose="batch", expires_us=9))
        part = {"file_id": "file-1", "seq": 0, "data": CANARY.encode()}
        await connection.execute(insert(tables.file_parts).values(**part))
        for target, details in ((CANARY, {}), ("b1", {"scope": f"user:{CANARY}"})):
            act = audit.Act(actor="cli", action="users.create", target=target, details=details)
            await audit.record(connection, act)


@pytest.fixture
async def where(
    tmp_path: Path, database_url: str, redis_server: RedisServer
) -> AsyncIterator[Places]:
    chosen = _settings(tmp_path, database_url, redis_server.url)
    async with stores.places(chosen, redis_server.url) as places:
        assert places.redis is not None
        yield places


async def _found_in_sql(engine: AsyncEngine, needle: str) -> list[str]:
    found = []
    async with engine.connect() as connection:
        for table in tables.metadata.sorted_tables:
            for row in await connection.execute(select(table)):
                if needle in repr(tuple(row)):
                    found.append(f"{table.name}: {tuple(row)}")
    return found


async def _found_in_pages(engine: AsyncEngine, needle: str) -> set[str]:
    """Tables and indexes of PostgreSQL in whose files it stands, in free space too."""
    files = text(
        "SELECT c.relname, pg_read_binary_file(pg_relation_filepath(c.oid)) FROM pg_class c"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')"
    )
    async with engine.connect() as connection:
        await connection.execute(text("CHECKPOINT"))
        return {name for name, data in await connection.execute(files) if needle.encode() in data}


async def _found_in_redis(client: Any, needle: str) -> list[str]:
    found = []
    readers = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"stream": client.xrange,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"set": client.smembers,
    }
    async for key in client.scan_iter():
        value = await readers[await client.type(key)](key)
        if needle in repr((key, value)):
            found.append(repr(key))
    return found


def _found_in_files(folder: Path, needle: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if needle.encode() in path.read_bytes()]


async def test_nothing_of_a_deleted_user_is_found_anywhere(
    where: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    """Database, Redis, state folder and log: full of the canary before, 0 hits after."""
    engine, state = where.engine, where.state_dir
    await _serve(where.settings)
    await _plant(where.settings, engine)
    before = {table.partition(":")[0] for table in await _found_in_sql(engine, CANARY)}
    assert before >= {"requests", "subjects", "budgets", "users", "audit_log", "file_parts"}
    assert len(await _found_in_redis(where.redis, CANARY)) >= 2
    assert {Path(path).suffix for path in _found_in_files(state, CANARY)} >= {".csv", ".bad"}

    exported = await stores.export(where, "user", CANARY)
    filled = {store for store, records in exported["stores"].items() if records}
    assert filled == {
        "journals",
        "caches",
        "exports",
        "files and batches",
        "requests and charges",
        "feedback",
        "budgets",
        "audit log",
        "teams and users",
        "names of teams and users",
    }
    dated = datetime(2027, 1, 1, tzinfo=UTC)
    sums = (await costs_report(engine, where.settings, now=dated))["totals"]
    counts = await stores.delete(where, "user", CANARY)
    assert counts["requests and charges"] == 4

    assert await _found_in_sql(engine, CANARY) == []
    if engine.dialect.name == "postgresql":
        assert await _found_in_pages(engine, CANARY) <= {"requests"}
    assert await _found_in_redis(where.redis, CANARY) == []
    assert _found_in_files(state, CANARY) == []
    printed = capsys.readouterr()
    assert CANARY not in printed.out + printed.err

    assert await _found_in_sql(engine, "somebody") != []
    assert await _found_in_redis(where.redis, "somebody") != []
    assert [Path(p).name for p in _found_in_files(state / EXPORTS, "somebody")] == ["clean.csv"]
    after = (await costs_report(engine, where.settings, now=dated))["totals"]
    assert after["requests"] == sums["requests"] + 1, "the journalled one is booked by now"
    async with engine.connect() as connection:
        assert (await check.check_chain(connection)).problem is None
        assert await check.rollup_problems(connection) == []
    assert set((await stores.delete(where, "user", CANARY)).values()) == {0}


async def test_deleting_a_team_takes_its_keys_and_its_own_users_along(where: Places) -> None:
    """A user of two teams stays; a closed month keeps its sums and forgets the team's name."""
    rows = [
        settlement("a", team=CANARY, user="mine", key="key_mine"),
        settlement("b", team=CANARY, user="shared"),
        settlement("c", team="other", user="shared", charges=(charge("c", cost_nano_usd=5),)),
    ]
    await Repository(where.engine).write(rows)
    key = {"id": "key_mine", "sha256": "ab", "prefix": "hg_x", "team": CANARY, "name": "n"}
    async with where.engine.begin() as connection:
        await connection.execute(insert(tables.teams).values(name=CANARY, created_us=0))
        await connection.execute(insert(tables.keys).values(**key, scopes=[], created_us=0))
    closed = await month_end.close(where.engine, where.settings, "2026-11", now=DECEMBER)
    await where.redis.set(f"headgate:1:exact:{CANARY}:00", b"")
    await where.redis.set(f"headgate:1:exact:{CANARY}-too:00", b"")

    counts = await stores.delete(where, "team", CANARY)
    assert (counts["keys"], counts["teams and users"], counts["caches"]) == (1, 1, 1)
    assert await _found_in_sql(where.engine, CANARY) == []
    assert await _found_in_sql(where.engine, "'mine'") == []
    assert await _found_in_sql(where.engine, "shared") != []
    assert await _found_in_redis(where.redis, f"{CANARY}-too") != []
    bill = await month_end.bill(where.engine, where.settings, "2026-11")
    assert bill.total_nano_usd == closed.total_nano_usd
    assert {line.name[:8] for line in bill.lines if line.kind == "team"} == {"deleted:", "other"}
    found = await costs_report(where.engine, where.settings, group_by="team")
    assert sum(row["requests"] for row in found["rows"]) == 3


async def test_sums_by_tag_keep_those_of_others(where: Places) -> None:
    """What was counted under a deleted user's tags counts without one; the same tags of somebody
    else stay, and what arrives late changes neither."""
    await Repository(where.engine).write(
        [
            settlement("a", user=CANARY, tags={"who": CANARY, "env": "prod", CANARY: "x"}),
            settlement("b", user=CANARY, tags={"env": "prod"}, charges=()),
            settlement("c", user="somebody", tags={"env": "prod", "who": "me"}),
        ]
    )
    asked: dict[str, Any] = {"group_by": "tag:env", "now": datetime(2027, 1, 1, tzinfo=UTC)}
    found = await costs_report(where.engine, where.settings, **asked)
    assert [(row["tag:env"], row["requests"]) for row in found["rows"]] == [("prod", 3)]
    await stores.delete(where, "user", CANARY)
    assert await _found_in_sql(where.engine, CANARY) == []
    late = settlement("a", tags={"who": CANARY}, charges=(charge("a"), charge("a", 7)))
    await Repository(where.engine).write([late])
    after = await costs_report(where.engine, where.settings, **asked)
    assert {row["tag:env"]: row["requests"] for row in after["rows"]} == {"prod": 1, None: 2}
    async with where.engine.connect() as connection:
        assert await check.rollup_problems(connection) == []
        values = select(tables.rollup_values.c.dimension, tables.rollup_values.c.value)
        rows = {tuple(row) for row in await connection.execute(values)}
    assert {row for row in rows if row[0].startswith("tag:")} == {
        ("tag:env", "prod"),
        ("tag:who", "me"),
    }
    assert len([value for dimension, value in rows if dimension == "set"]) == 1


async def test_nothing_is_taken_out_of_months_that_retention_cut(where: Places) -> None:
    """Their sums are gone, so that what is taken out would stand there alone, with its tags."""
    rows = [
        settlement(
            f"r{age}",
            user=CANARY,
            tags={"who": f"{CANARY} {age}"},
            started_at=NOW - age * 86_400,
            charges=(charge(f"r{age}", at=NOW - age * 86_400),),
        )
        for age in (0, 9)
    ]
    await Repository(where.engine).write(rows)
    assert await prune(where.engine, retention_days=2, now=NOW) == 1
    await stores.delete(where, "user", CANARY)
    assert await _found_in_sql(where.engine, CANARY) == []
    async with where.engine.connect() as connection:
        assert await check.rollup_problems(connection) == []


async def test_deleting_a_key_forgets_its_name(where: Places) -> None:
    """Its row goes, and with it what its random id meant; its requests stay in the books."""
    await Repository(where.engine).write([settlement("a", key="key_7"), settlement("b")])
    key = {"id": "key_7", "sha256": "ab", "prefix": "hg_x", "team": "search", "name": CANARY}
    async with where.engine.begin() as connection:
        await connection.execute(insert(tables.keys).values(**key, scopes=[], created_us=0))
    counts = await stores.delete(where, "key", "key_7")
    assert (counts["keys"], counts["requests and charges"]) == (1, 1)
    assert await _found_in_sql(where.engine, CANARY) == []
    found = await costs_report(where.engine, where.settings, group_by="key")
    assert {row["key"]: row["requests"] for row in found["rows"]} == {"key_7": 1, "key_1": 1}


async def test_rows_that_the_database_has_not_taken_are_named(
    where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A living gateway's journal that does not empty: an error, not a false all-clear."""
    monkeypatch.setattr("gateway.privacy.files._PATIENCE_S", 0.3)
    living = Journal(where.state_dir / "journal")
    living.append(msgspec.json.encode(settlement("held", user=CANARY)))
    with pytest.raises(DeletionError, match="1 rows wait"):
        await stores.delete(where, "user", CANARY)
    living.close()
    counts = await stores.delete(where, "user", CANARY)
    assert (counts["journals"], counts["requests and charges"]) == (1, 1)


async def test_names_of_likeness_stay(where: Places) -> None:
    """Deleting `ann` leaves `anna`, `joann` and SQL's wildcards alone."""
    names = ("ann", "anna", "joann", "a%", "a_n")
    await Repository(where.engine).write(
        [settlement(f"r{n}", user=name) for n, name in enumerate(names)]
    )
    await stores.delete(where, "user", "ann")
    await stores.delete(where, "user", "a%")
    async with where.engine.connect() as connection:
        users = await connection.execute(
            select(tables.subjects.c.name).where(tables.subjects.c.kind == "user")
        )
        assert set(users.scalars()) == {"anna", "joann", "a_n"}


def test_every_table_and_store_stands_in_the_docs() -> None:
    """docs/data.md has a line for each store and names every table of the schema."""
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for store in stores.STORES:
        assert f"| {store.name} |" in page
    for table in tables.metadata.tables:
        assert f"`{table}`" in page


async def test_without_redis_the_next_start_finds_no_old_answers(
    tmp_path: Path, database_url: str
) -> None:
    """The private Redis does not run: its dump would bring the answers back, so it goes."""
    dump = tmp_path / "state" / "redis" / "cache.rdb"
    dump.parent.mkdir(parents=True)
    dump.write_bytes(b"REDIS0009 an answer")
    chosen = Settings(
        database=DatabaseSettings(url=database_url), state_dir=str(tmp_path / "state")
    )
    engine = open_engine(database_url)
    counts = await stores.delete(Places(settings=chosen, engine=engine, redis=None), "user", CANARY)
    await engine.dispose()
    assert counts["caches"] == 1
    assert not dump.exists()
