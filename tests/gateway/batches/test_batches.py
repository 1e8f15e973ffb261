"""/v1/files and /v1/batches: the life of a batch, whose it is, and what ends it otherwise."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from backends.echo import EchoBackend
from gateway.batches.lines import MAX_ERRORS, read_lines
from gateway.batches.store import LEASE_S, BatchStore, LeaseLost
from gateway.ledger import key_store
from gateway.ledger.access import Only
from gateway.ledger.database import open_engine, writing
from gateway.ledger.key_store import NewKey
from gateway.ledger.keys import ANONYMOUS
from gateway.ledger.tables import batches, file_parts, files
from gateway.settings import BackendSettings, BatchSettings, DatabaseSettings, ServerSettings
from gateway.settings.prices import PriceSettings
from tests.gateway.serving import Gateway, decode, gateway, settings

CHATS = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def line(name: str, url: str = CHATS, **body: Any) -> dict[str, Any]:
    """One request of a batch."""
    chat = {"model": "small", "messages": [{"role": "user", "content": f"say {name}"}]}
    return {"custom_id": name, "method": "POST", "url": url, "body": body or chat}


def written(*lines: Any) -> bytes:
    """A file of lines."""
    return "\n".join(json.dumps(one) for one in lines).encode()


async def upload(served: Gateway, data: bytes, **headers: str) -> Any:
    """The answer to POST /v1/files."""
    return await served.client.post(
        "/v1/files",
        files={"file": ("in.jsonl", data)},
        data={"purpose": "batch"},
        headers=headers,
    )


async def begin(served: Gateway, data: bytes, endpoint: str = CHATS, **headers: str) -> Any:
    """The answer to POST /v1/batches over an uploaded file."""
    file = decode(await upload(served, data, **headers))
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
    return await served.client.post("/v1/batches", json=body, headers=headers)


async def ended(served: Gateway, batch: Any, **headers: str) -> Any:
    """The batch (its id, or the answer that has it) once it has ended."""
    path = f"/v1/batches/{batch if isinstance(batch, str) else decode(batch)['id']}"
    async with asyncio.timeout(60):
        while True:
            shown = decode(await served.client.get(path, headers=headers))
            if shown["status"] in ENDED:
                return shown
            await asyncio.sleep(0.02)


def unanswered(shown: dict[str, Any]) -> dict[str, Any]:
    """The body of a row that is like an ended batch of one line, before it was begun."""
    body = {name: shown[name] for name in shown if name not in ("id", "object", "status")}
    counts = {"total": 1, "completed": 0, "failed": 0}
    return {**body, "output_file_id": None, "request_counts": counts}


async def until_asked(backend: EchoBackend) -> None:
    """Return when the backend has seen a request."""
    while not backend.requests:  # noqa: ASYNC110 (it tells nobody)
        await asyncio.sleep(0.01)


async def content(served: Gateway, file_id: str) -> list[Any]:
    """The lines of a file."""
    answer = await served.client.get(f"/v1/files/{file_id}/content")
    return [json.loads(text) for text in answer.text.splitlines()]


@asynccontextmanager
async def over(
    folder: Path, url: str, made: Mapping[str, EchoBackend] | None = None, **tables: Any
) -> AsyncIterator[Gateway]:
    """A gateway over a database of either kind."""
    chosen = settings(folder, database=DatabaseSettings(url=url), **tables)
    async with gateway(chosen, made) as served:
        yield served


async def test_a_batch_answers_every_line_once(tmp_path: Path, database_url: str) -> None:
    """All kinds of requests: right lines answered, wrong ones in the error file, all booked."""
    async with over(tmp_path, database_url) as served:
        wrong = line(
            "wrong", model="small", messages=[{"role": "user", "content": "x"}], temperature=9
        )
        lines = [*(line(f"r{n}") for n in range(40)), wrong]
        created = await begin(served, written(*lines))
        assert decode(created)["status"] == "validating"
        batch = await ended(served, created)
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 41, "completed": 40, "failed": 1}
        assert batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]

        output = await content(served, batch["output_file_id"])
        assert {one["custom_id"] for one in output} == {f"r{n}" for n in range(40)}
        for one in output:
            said = one["response"]["body"]["choices"][0]["message"]["content"]
            assert one["custom_id"] in said
            found = await served.parts.ledger.find(one["response"]["request_id"])
            assert found is not None
            assert found.charges
        (error,) = await content(served, batch["error_file_id"])
        assert error["custom_id"] == "wrong"
        assert error["response"]["status_code"] == 400
        assert error["response"]["body"]["error"]["param"] == "temperature"

        other = line("r", "/v1/responses", model="small", input="say r")
        batch = await ended(served, await begin(served, written(other), "/v1/responses"))
        (one,) = await content(served, batch["output_file_id"])
        assert one["response"]["body"]["object"] == "response"


async def test_lines_cost_what_upstreams_bill_for_batches(tmp_path: Path, sqlite_url: str) -> None:
    """They go out with the tier that makes them cheap; whoever waits for an answer pays in full."""
    price = PriceSettings(
        input_usd_per_mtok=Decimal(4),
        batch_input_usd_per_mtok=Decimal(2),
        batch_service_tier="flex",
    )
    outside = BackendSettings(
        name="small", kind="openai", model="m", base_urls=["http://x/v1"], price=price
    )
    backend = EchoBackend("small")
    chosen = settings(tmp_path, outside, database=DatabaseSettings(url=sqlite_url))
    async with gateway(chosen, {"small": backend}) as served:
        batch = await ended(served, await begin(served, written(line("r0"))))
        (output,) = await content(served, batch["output_file_id"])
        line_row = await served.parts.ledger.find(output["response"]["request_id"])
        other = await served.settled(await served.chat("say r1"))
    assert line_row is not None
    (cheap,), (dear,) = line_row.charges, other.charges
    assert (cheap.unit_prices["input_usd_per_mtok"], cheap.cost_nano_usd) == (
        "2",
        2_000 * cheap.prompt_tokens,
    )
    assert dear.cost_nano_usd == 4_000 * dear.prompt_tokens > 0
    assert [one.body.get("service_tier") for one in backend.requests] == ["flex", None]


async def test_lines_leave_room_for_whoever_waits_for_an_answer(
    tmp_path: Path, sqlite_url: str
) -> None:
    """Half of a backend's places at most, and the last at our engines."""
    slow = EchoBackend("small", delay_s=0.02)
    small = BackendSettings(name="small", kind="engine", model="m", max_concurrency=4)
    chosen = settings(tmp_path, small, database=DatabaseSettings(url=sqlite_url))
    async with gateway(chosen, {"small": slow}) as served:
        created = await begin(served, written(*(line(f"r{n}") for n in range(8))))
        ending = asyncio.create_task(ended(served, created))
        most = 0
        while not ending.done():
            most = max(most, served.parts.queues.of("small").running)
            await asyncio.sleep(0.002)
        assert most == 2
        assert ending.result()["request_counts"]["completed"] == 8
        assert (await served.chat("hurry")).status_code == 200
    *lines, chat = [one.body.get("priority") for one in slow.requests]
    assert (set(lines), chat) == ({1_000_000}, None)


async def test_a_batch_goes_on_after_a_restart(tmp_path: Path, database_url: str) -> None:
    """Answered lines stay, the others are answered by whoever starts next, none is there twice."""
    slow = {name: EchoBackend(name, delay_s=0.2) for name in ("small", "base")}
    few = BatchSettings(concurrency=2)
    async with over(tmp_path, database_url, slow, batches=few) as served:
        created = await begin(served, written(*(line(f"r{n}") for n in range(30))))
        async with asyncio.timeout(60):
            await until_asked(slow["small"])
    async with over(tmp_path, database_url) as served:
        batch = await ended(served, created)
        output = await content(served, batch["output_file_id"])
        assert sorted(one["custom_id"] for one in output) == sorted(f"r{n}" for n in range(30))
        assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}


async def test_a_cancelled_batch_keeps_what_it_has(tmp_path: Path, sqlite_url: str) -> None:
    """No further line is begun; what was answered can be read; an ended batch stays as it is."""
    slow = {name: EchoBackend(name, delay_s=0.05) for name in ("small", "base")}
    async with over(tmp_path, sqlite_url, slow, batches=BatchSettings(concurrency=2)) as served:
        created = await begin(served, written(*(line(f"r{n}") for n in range(500))))
        path = f"/v1/batches/{decode(created)['id']}"
        cancelled = decode(await served.client.post(f"{path}/cancel"))
        assert cancelled["status"] == "cancelling"
        batch = await ended(served, created)
        assert batch["status"] == "cancelled"
        counts = batch["request_counts"]
        assert counts["completed"] < 500
        done = await ended(served, await begin(served, written(line("one"))))
        again = await served.client.post(f"/v1/batches/{done['id']}/cancel")
        assert (again.status_code, decode(again)["error"]["code"]) == (409, "conflict")


async def test_lines_after_the_window_are_left_out_by_name(tmp_path: Path, sqlite_url: str) -> None:
    """What was not begun within the window stands in the error file."""
    async with over(tmp_path, sqlite_url) as served:
        done = await ended(served, await begin(served, written(line("late"))))
        body = unanswered(done) | {"expires_at": 1}
        row = {"id": "batch_late", "team": "anonymous", "key": "anonymous", "body": body}
        async with writing(served.parts.engine) as connection:
            await connection.execute(
                insert(batches).values(
                    **row, status="in_progress", created_us=1, expires_us=2**60, leased_until_us=0
                )
            )
        served.app.state["batches"].wake()
        batch = await ended(served, "batch_late")
        assert batch["status"] == "expired"
        (left,) = await content(served, batch["error_file_id"])
        assert (left["custom_id"], left["error"]["code"]) == ("late", "batch_expired")


async def test_who_lost_the_lease_writes_no_more(database_url: str) -> None:
    """A process that stood still for too long finds its batch taken over, and leaves it alone."""
    engine, clock = open_engine(database_url), [1e9]
    store = BatchStore(engine, keep_s=1e6, clock=lambda: clock[0], new_id=lambda: "held")
    await store.create(ANONYMOUS, endpoint=CHATS, input_file_id="file-1", metadata=None)
    slow = await store.claim()
    assert slow is not None
    assert await store.claim() is None
    clock[0] += LEASE_S + 1
    quick = await store.claim()
    assert quick is not None
    with pytest.raises(LeaseLost):
        async with store.holding(slow):
            slow.turn("completed", clock[0])
    await store.release(slow)
    assert await store.claim() is None, "what was not its own it could not release"
    async with store.holding(quick):
        quick.turn("completed", clock[0])
    clock[0] += LEASE_S + 1
    assert await store.claim() is None
    await engine.dispose()


async def test_files_and_batches_are_a_teams_own(tmp_path: Path, sqlite_url: str) -> None:
    """Another team sees nothing; restrictions hold; after its key went, lines are refused."""
    keys_only = ServerSettings(auth="keys")
    async with over(tmp_path, sqlite_url, server=keys_only) as served:
        heads = {}
        async with writing(served.parts.engine) as connection:
            for name, only in (
                ("mine", Only()),
                ("theirs", Only()),
                ("narrow", Only(endpoints=("files", "batches"))),
            ):
                made = NewKey(team="b" if name == "theirs" else "a", name=name, only=only)
                key, secret = await key_store.create_key(connection, made, now=0.0)
                heads[name] = {"authorization": f"Bearer {secret}"}
                if name == "mine":
                    key_id = key.id
        batch = await begin(served, written(line("r")), **heads["mine"])
        shown = await ended(served, batch, **heads["mine"])
        assert shown["request_counts"]["completed"] == 1
        for path in (
            f"/v1/batches/{shown['id']}",
            f"/v1/files/{shown['input_file_id']}",
            f"/v1/files/{shown['output_file_id']}/content",
        ):
            assert (await served.client.get(path, headers=heads["theirs"])).status_code == 404
            assert (await served.client.get(path)).status_code == 401
        listed = await served.client.get("/v1/batches", headers=heads["theirs"])
        assert decode(listed)["data"] == []
        refused = await begin(served, written(line("r")), **heads["narrow"])
        assert (refused.status_code, decode(refused)["error"]["code"]) == (403, "forbidden")

        file = decode(await upload(served, written(line("r")), **heads["mine"]))
        async with writing(served.parts.engine) as connection:
            await key_store.revoke_key(connection, key_id, now=0.0)
        batch_id = decode(batch)["id"]
        async with writing(served.parts.engine) as connection:
            again = unanswered(shown) | {"input_file_id": file["id"]}
            await connection.execute(
                update(batches)
                .where(batches.c.id == batch_id)
                .values(status="in_progress", body=again, leased_until_us=0)
            )
        served.app.state["batches"].wake()
        shown = await ended(served, batch_id, **heads["narrow"])
        assert shown["request_counts"] == {"total": 1, "completed": 0, "failed": 1}


async def test_files_are_listed_read_and_removed(tmp_path: Path, database_url: str) -> None:
    """The files API: pages, bytes as they came, gone when deleted or when their time has come."""
    async with over(tmp_path, database_url) as served:
        data = b"\x00\xff" * 3_000_000
        made = [decode(await upload(served, data if n == 0 else b"x")) for n in range(3)]
        assert made[0] | {"created_at": 0, "expires_at": 0} == {
            "id": made[0]["id"],
            "object": "file",
            "bytes": 6_000_000,
            "created_at": 0,
            "expires_at": 0,
            "filename": "in.jsonl",
            "purpose": "batch",
            "status": "processed",
            "status_details": None,
        }
        for path in ("/v1/files/%00", "/requests/%00"):  # which PostgreSQL cannot look for
            assert (await served.client.get(path)).status_code in (400, 404)
        answer = await served.client.get(f"/v1/files/{made[0]['id']}/content")
        assert answer.content == data
        ids = [file["id"] for file in made]
        page = decode(await served.client.get("/v1/files?limit=2&order=asc"))
        assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[:2], True)
        query = f"/v1/files?limit=2&order=asc&after={page['last_id']}"
        page = decode(await served.client.get(query))
        assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[2:], False)
        path = f"/v1/files/{ids[0]}"
        assert decode(await served.client.delete(path))["deleted"] is True
        assert (await served.client.get(path)).status_code == 404

        async with writing(served.parts.engine) as connection:
            await connection.execute(update(files).where(files.c.id == ids[1]).values(expires_us=1))
        await served.app.state["batches"].files.forget_expired()
        async with served.parts.engine.connect() as connection:
            parts = set((await connection.execute(select(file_parts.c.file_id))).scalars())
        assert parts == {ids[2]}


async def test_bad_uploads_and_batches_are_refused_by_name(tmp_path: Path) -> None:
    """Each with the field; turned off, both take nothing."""
    async with gateway(settings(tmp_path)) as served:
        for sent, param in (
            ({"json": {}}, None),
            ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, None),
            ({"data": {"purpose": "batch"}, "files": {"other": ("x", b"x")}}, "other"),
            ({"data": {"purpose": "batch", "file": "x"}, "files": {"x": ("x", b"")}}, "x"),
            ({"data": {"purpose": "evals"}, "files": {"file": ("x", b"x")}}, "purpose"),
        ):
            answer = await served.client.post("/v1/files", **sent)
            assert (answer.status_code, decode(answer)["error"]["param"]) == (400, param), sent
        file = decode(await upload(served, b"x"))["id"]
        right = {"input_file_id": file, "endpoint": CHATS, "completion_window": "24h"}
        for name, value in (
            ("input_file_id", "file-unknown"),
            ("endpoint", "/v1/images"),
            ("completion_window", "1h"),
            ("colour", "red"),
        ):
            answer = await served.client.post("/v1/batches", json={**right, name: value})
            assert (answer.status_code, decode(answer)["error"]["param"]) == (400, name)
        for query in ("limit=0", "limit=x", "limit=101", "order=up"):
            answer = await served.client.get(f"/v1/batches?{query}")
            assert decode(answer)["error"]["param"] == query.partition("=")[0]
        failed = await ended(served, await served.client.post("/v1/batches", json=right))
        assert failed["status"] == "failed"
        assert failed["errors"]["data"][0]["line"] == 1
    async with gateway(settings(tmp_path, batches=BatchSettings(enabled=False))) as served:
        assert (await upload(served, b"x")).status_code == 403


@pytest.mark.parametrize(
    ("data", "code", "number"),
    [
        (b"", "empty_file", None),
        (b"\n\n", "empty_file", None),
        (b"nope", "invalid_json_line", 1),
        (b"\xff", "invalid_json_line", 1),
        (b'{"custom_id": "a"}', "invalid_json_line", 1),
        (written(line("a"), line("a")), "duplicate_custom_id", 2),
        (written(line("")), "duplicate_custom_id", 1),
        (written(line("a") | {"method": "GET"}), "invalid_method", 1),
        (written(line("a"), line("b", "/v1/completions")), "mismatched_endpoint", 2),
        (written(line("a", model="m", stream=True)), "invalid_request", 1),
    ],
)
def test_wrong_lines_are_named(data: bytes, code: str, number: int | None) -> None:
    """A code of its own for each, and the line's number."""
    _, (error,) = read_lines(data, CHATS)
    assert (error["code"], error["line"]) == (code, number)


def test_many_wrong_lines_are_not_all_named() -> None:
    """A file of garbage has as many errors as somebody reads."""
    _, errors = read_lines(b"x\n" * 1000, CHATS)
    assert len(errors) == MAX_ERRORS
