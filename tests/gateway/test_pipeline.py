"""One request's story: routing, caches, fallbacks, money, and exactly one settlement each."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from backends.contract import Usage
from backends.echo import EchoBackend
from gateway.ledger.budget_store import Budget, set_budget
from gateway.ledger.tables import shadows
from gateway.settings import (
    BackendSettings,
    CacheSettings,
    ExactSettings,
    PriceSettings,
    SemanticSettings,
    Settings,
)
from tests.gateway.serving import Gateway, decode, events, gateway, settings, text_of

PRICE = PriceSettings(input_usd_per_mtok=Decimal(1000), output_usd_per_mtok=Decimal(2000))


def priced(folder: Path, **tables: Any) -> Settings:
    """Two backends with prices, so that every token costs something visible."""
    return settings(
        folder,
        BackendSettings(name="small", kind="echo", model="echo-small", tier="small", price=PRICE),
        BackendSettings(name="base", kind="echo", model="echo-base", tier="base", price=PRICE),
        **tables,
    )


async def test_chat_says_who_answered_and_why(tmp_path: Path) -> None:
    """Every header of the contract stands on a whole answer, and the ledger agrees with them."""
    async with gateway(priced(tmp_path)) as served:
        answer = await served.chat("hello there")
        assert answer.status_code == 200
        body = decode(answer)
        assert body["choices"][0]["message"]["content"] == "You said: hello there"
        assert body["model"] == "small"
        headers = answer.headers
        assert headers["x-headgate-backend"] == "small"
        assert headers["x-headgate-model"] == "echo-small"
        assert headers["x-headgate-policy"].startswith("test@")
        assert headers["x-headgate-rule"] == "default"
        assert headers["x-headgate-cache"] == "off"
        assert headers["x-request-id"] == headers["x-headgate-request-id"]
        assert 0 <= float(headers["x-headgate-difficulty"]) <= 1
        assert headers["x-headgate-task"]
        settlement = await served.settled(answer)
        usage = body["usage"]
        cost = usage["prompt_tokens"] * 1_000_000 + usage["completion_tokens"] * 2_000_000
        assert settlement.request.cost_nano_usd == cost
        assert Decimal(headers["x-headgate-cost-usd"]) == Decimal(cost) / 10**9
        assert headers["x-headgate-saved-usd"] == "0"
        assert [charge.kind for charge in settlement.charges] == ["answer"]
        assert settlement.request.policy_sha256.startswith(
            headers["x-headgate-policy"].split("@")[1]
        )


async def test_stream_carries_what_it_cost_on_its_finish_chunk(tmp_path: Path) -> None:
    """Without include_usage the headgate object stands on the chunk with finish_reason."""
    async with gateway(priced(tmp_path)) as served:
        answer = await served.chat("hello there", stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-headgate-backend"] == "small"
        chunks = events(answer)
        assert text_of(chunks) == "You said: hello there"
        carrying = [chunk for chunk in chunks if "headgate" in chunk]
        assert carrying == chunks[-1:]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert not any(chunk.get("usage") for chunk in chunks)
        told = chunks[-1]["headgate"]
        settlement = await served.settled(answer)
        assert told["cost_usd"] == str(Decimal(settlement.request.cost_nano_usd) / 10**9)
        assert settlement.request.ttft_ms is not None
        assert {"backend", "model", "policy", "rule", "task", "cache", "saved_usd"} <= told.keys()


async def test_stream_with_usage_ends_with_usage_and_costs(tmp_path: Path) -> None:
    """With include_usage the last chunk has usage, no choices, and the headgate object."""
    async with gateway(priced(tmp_path)) as served:
        answer = await served.chat(stream=True, stream_options={"include_usage": True})
        chunks = events(answer)
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        assert chunks[-1]["headgate"]["backend"] == "small"
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert "headgate" not in chunks[-2]


@pytest.mark.parametrize("stream", [False, True])
async def test_repeat_comes_from_the_exact_cache(tmp_path: Path, stream: bool) -> None:
    """A repeated request costs nothing, says what it saved, and reads like the first answer."""
    async with gateway(priced(tmp_path)) as served:
        first = await served.chat(temperature=0)
        assert first.headers["x-headgate-cache"] == "miss"
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        fields: dict[str, Any] = {"temperature": 0}
        if stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        again = await served.chat(**fields)
        assert again.headers["x-headgate-cache"] == "exact"
        assert again.headers["x-headgate-cost-usd"] == "0"
        assert again.headers["x-headgate-saved-usd"] == first.headers["x-headgate-cost-usd"]
        original = decode(first)
        if stream:
            chunks = events(again)
            assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
            assert text_of(chunks) == original["choices"][0]["message"]["content"]
            assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
            assert chunks[-1]["usage"] == original["usage"]
        else:
            body = decode(again)
            assert body["choices"] == original["choices"]
            assert body["usage"] == original["usage"]
            assert body["id"] != original["id"]
        settlement = await served.settled(again)
        assert settlement.charges == ()
        assert settlement.request.saved_nano_usd > 0
        assert settlement.request.reuses == first.headers["x-headgate-request-id"]


async def test_streamed_answer_is_cached_for_whole_requests(tmp_path: Path) -> None:
    """What was first streamed is replayed as JSON, put together from its chunks."""
    async with gateway(priced(tmp_path)) as served:
        await served.chat(temperature=0, stream=True)
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        again = await served.chat(temperature=0)
        assert again.headers["x-headgate-cache"] == "exact"
        body = decode(again)
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"] == {
            "role": "assistant",
            "content": "You said: hello there",
        }


async def test_other_words_come_from_the_semantic_cache(tmp_path: Path) -> None:
    """A question in other words is answered from the cache, with its similarity; `exact` is not.
    What the encoder took is charged to both questions."""
    chosen = settings(
        tmp_path,
        BackendSettings(name="small", kind="echo", model="echo-small", tier="small", price=PRICE),
        BackendSettings(name="words", kind="encoder", model="words", price=PRICE),
        cache=CacheSettings(
            redis="memory", semantic=SemanticSettings(enabled=True, encoder="words", timeout_s=5)
        ),
    )
    made = {"small": EchoBackend("small"), "words": EchoBackend("words")}
    async with gateway(chosen, made) as served:
        first = await served.chat("what is the largest planet we know?", temperature=0)
        kinds = [(c.kind, c.backend) for c in (await served.settled(first)).charges]
        assert kinds == [("answer", "small"), ("encoder", "words")]
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        other = "we know what planet is the largest?"
        exact = await served.chat(other, temperature=0, headers={"x-headgate-cache": "exact"})
        assert exact.headers["x-headgate-cache"] == "miss"
        again = "the largest planet we know is what?"
        answer = await served.chat(again, temperature=0)
        assert answer.headers["x-headgate-cache"] == "semantic"
        assert float(answer.headers["x-headgate-similarity"]) > 0.93
        assert float(answer.headers["x-headgate-saved-usd"]) > 0
        settlement = await served.settled(answer)
        assert settlement.request.similarity is not None
        (charge,) = settlement.charges
        assert (charge.kind, charge.backend) == ("encoder", "words")
        assert charge.cost_nano_usd == settlement.request.cost_nano_usd > 0


async def test_policy_holds_for_cached_prompts(tmp_path: Path) -> None:
    """A denial, and another policy's cache rule, hold although the answer is in the cache."""
    async with gateway(priced(tmp_path)) as served:
        await served.chat(temperature=0)
        denied = await served.chat(temperature=0, headers={"x-headgate-tags": "forbidden=yes"})
        assert denied.status_code == 403
        assert decode(denied)["error"]["code"] == "policy_denied"
        assert (await served.settled(denied)).request.outcome == "denied"
        uncached = await served.chat(temperature=0, metadata={"uncached": "yes"})
        assert uncached.headers["x-headgate-cache"] == "off"


async def test_edited_policy_misses_the_old_entry(tmp_path: Path) -> None:
    """An edit that picks another backend does not get the answer of the old one."""
    async with gateway(priced(tmp_path)) as served:
        await served.chat(temperature=0)
        (tmp_path / "policies" / "test.toml").write_text('[default]\nroute = "base"\n')
        answer = await served.chat(temperature=0)
        assert answer.headers["x-headgate-backend"] == "base"
        assert answer.headers["x-headgate-cache"] == "miss"


@pytest.mark.parametrize(
    ("header", "verdict"), [("off", "off"), ("refresh", "miss"), ("exact", "exact")]
)
async def test_cache_header_tightens(tmp_path: Path, header: str, verdict: str) -> None:
    """Callers choose less caching than allowed, request by request."""
    async with gateway(settings(tmp_path)) as served:
        await served.chat(temperature=0)
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        answer = await served.chat(temperature=0, headers={"x-headgate-cache": header})
        assert answer.headers["x-headgate-cache"] == verdict


async def test_cap_is_sent_on_and_its_cut_is_not_cached(tmp_path: Path) -> None:
    """The policy's max_tokens reaches the backend; an answer it cut short is not stored."""
    small = EchoBackend("small")
    async with gateway(settings(tmp_path), {"small": small, "base": EchoBackend("base")}) as served:
        for _ in range(2):
            answer = await served.chat(
                temperature=0, max_tokens=50, headers={"x-headgate-tags": "short=yes"}
            )
            assert answer.headers["x-headgate-cache"] == "miss"
            assert decode(answer)["choices"][0]["finish_reason"] == "length"
            assert served.parts.caches is not None
            await served.parts.caches.settled()
        assert small.requests[-1].body["max_tokens"] == 2


@pytest.mark.parametrize(
    ("fault", "stream"),  # a stream that is cut has had its first token
    [(fault, stream) for fault in ("refuse", "overload", "error") for stream in (False, True)]
    + [("cut", False)],
)
async def test_failure_before_the_first_token_moves_on(
    tmp_path: Path, fault: Any, stream: bool
) -> None:
    """The next candidate answers, both attempts are on record, the request is settled once."""
    made = {"small": EchoBackend("small", faults=[fault]), "base": EchoBackend("base")}
    async with gateway(priced(tmp_path), made) as served:
        answer = await served.chat(stream=stream)
        assert answer.status_code == 200
        assert answer.headers["x-headgate-backend"] == "base"
        settlement = await served.settled(answer)
        assert [attempt.backend for attempt in settlement.request.attempts] == ["small", "base"]
        assert settlement.request.attempts[0].error is not None
        assert settlement.request.outcome == "ok"
        assert await served.rows() == 1


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("refuse", 503, "service_unavailable"),
        ("overload", 503, "service_unavailable"),
        ("error", 502, "backend_error"),
    ],
)
async def test_failure_of_all_is_an_error_of_openai_shape(
    tmp_path: Path, fault: Any, status: int, code: str
) -> None:
    """With no candidate left the client gets the last failure, and nothing is charged."""
    made = {name: EchoBackend(name) for name in ("small", "base")}
    async with gateway(settings(tmp_path), made) as served:
        for backend in made.values():
            backend.fault = fault
        answer = await served.chat()
        assert answer.status_code == status
        assert decode(answer)["error"]["code"] == code
        if status == 503:
            assert int(answer.headers["retry-after"]) >= 1
        settlement = await served.settled(answer)
        assert settlement.request.outcome == "error"
        assert settlement.charges == ()


async def test_break_in_mid_stream_is_an_event_and_is_charged(tmp_path: Path) -> None:
    """The client gets an error event and no [DONE]; the tokens served are booked."""
    made = {
        "small": EchoBackend("small", tokens=10, faults=["cut"]),
        "base": EchoBackend("base"),
    }
    async with gateway(priced(tmp_path), made) as served:
        answer = await served.chat(stream=True)
        assert answer.status_code == 200
        assert "[DONE]" not in answer.text
        last = answer.text.strip().split("\n\n")[-1]
        assert '"code":"backend_error"' in last
        settlement = await served.settled(answer)
        assert settlement.request.outcome == "error"
        assert settlement.request.completion_tokens == 5
        assert settlement.charges[0].completion_tokens == 5
        assert await served.rows() == 1


async def test_deadline_ends_the_request(tmp_path: Path) -> None:
    """x-headgate-deadline-ms gives 504 in time, and the request is settled."""
    made = {name: EchoBackend(name, delay_s=5.0) for name in ("small", "base")}
    async with gateway(priced(tmp_path), made) as served:
        answer = await served.chat(headers={"x-headgate-deadline-ms": "80"})
        assert answer.status_code == 504
        assert decode(answer)["error"]["code"] == "deadline_exceeded"
        settlement = await served.settled(answer)
        assert settlement.request.outcome == "error"
        assert settlement.request.duration_ms < 3000


async def test_client_that_leaves_pays_for_what_was_used(tmp_path: Path) -> None:
    """A disconnect cancels the backend's work and books the usage that the backend reports."""
    small = EchoBackend("small", tokens=500, token_delay_s=0.02)
    async with gateway(settings(tmp_path), {"small": small, "base": EchoBackend("base")}) as served:
        sent: list[dict[str, Any]] = []
        left = asyncio.Event()
        body = b'{"model": "auto", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 4:
                left.set()

        scope: Any = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"x-request-id", b"left-early")],
            "query_string": b"",
        }
        async with asyncio.timeout(5):
            await served.app(scope, receive, send)
        found = await served.parts.ledger.find("left-early")
        assert found is not None
        assert found.request.outcome == "cancelled"
        usage = await small.usage_of("left-early")
        assert usage is not None
        assert 0 < found.request.completion_tokens == usage.completion_tokens < 500
        assert served.parts.registry.in_flight("small") == 0
        assert served.pipeline.in_flight == 0


async def test_spent_budget_refuses_before_asking(tmp_path: Path) -> None:
    """A request that does not fit the budget is refused with 429, and the backend is not asked."""
    small = EchoBackend("small")
    async with gateway(priced(tmp_path), {"small": small, "base": EchoBackend("base")}) as served:
        async with served.parts.engine.begin() as connection:
            budget = Budget(scope="team:anonymous", window="day", limit_nano_usd=50_000_000)
            await set_budget(connection, budget, now=served.parts.clock())
        await served.parts.budgets.refresh()
        fits = await served.chat(max_tokens=10)
        assert fits.status_code == 200
        asked = len(small.requests)
        refused = await served.chat(max_tokens=1000)
        assert refused.status_code == 429
        assert decode(refused)["error"]["code"] == "insufficient_quota"
        assert refused.headers["x-should-retry"] == "false"
        assert len(small.requests) == asked
        assert (await served.settled(refused)).request.outcome == "refused"


async def test_budget_of_a_user_is_held_against_the_bodys_user(tmp_path: Path) -> None:
    """A budget with the scope user:U binds requests whose body says that user."""
    async with gateway(priced(tmp_path)) as served:
        await served.client.post(
            "/admin/budgets", json={"scope": "user:ann", "limit_usd": "0.001", "window": "day"}
        )
        assert (await served.chat(user="ann")).status_code == 429
        assert (await served.chat(user="bob")).status_code == 200


async def test_cap_per_request_refuses_the_dear(tmp_path: Path) -> None:
    """x-headgate-max-cost-usd lets cheap requests through and refuses those that may cost more."""
    async with gateway(priced(tmp_path)) as served:
        header = {"x-headgate-max-cost-usd": "0.1"}
        assert (await served.chat(max_tokens=20, headers=header)).status_code == 200
        refused = await served.chat(max_tokens=2000, headers=header)
        assert refused.status_code == 400
        error = decode(refused)["error"]
        assert (error["code"], error["param"]) == ("max_cost_exceeded", "x-headgate-max-cost-usd")


async def test_request_id_of_the_client_is_kept_once(tmp_path: Path) -> None:
    """A repeated id gets a row of its own: an id may never hide a request from the ledger."""
    async with gateway(settings(tmp_path)) as served:
        first = await served.chat(headers={"x-request-id": "mine"})
        again = await served.chat(headers={"x-request-id": "mine"})
        assert first.headers["x-headgate-request-id"] == "mine"
        assert again.headers["x-headgate-request-id"].startswith("mine-")
        assert await served.rows() == 2


async def test_every_outcome_is_settled_once(tmp_path: Path) -> None:
    """Answered, refused, denied, failed: as many rows as requests."""
    made = {"small": EchoBackend("small"), "base": EchoBackend("base")}
    async with gateway(settings(tmp_path), made) as served:
        await served.chat()
        await served.chat(stream=True)
        await served.chat(model="nobody")
        await served.chat(headers={"x-headgate-tags": "forbidden=yes"})
        await served.chat(temperature=9)
        await served.post("/v1/chat/completions", b"{")
        for backend in made.values():
            backend.fault = "refuse"
        await served.chat()
        assert await served.rows() == 7
        assert served.pipeline.in_flight == 0


async def test_store_that_is_gone_costs_no_request(tmp_path: Path) -> None:
    """Requests pass uncached while Redis does not answer."""
    gone = CacheSettings(redis="redis://127.0.0.1:1/0", exact=ExactSettings(sampled=True))
    async with gateway(settings(tmp_path, cache=gone)) as served:
        for _ in range(2):
            answer = await served.chat(temperature=0)
            assert answer.status_code == 200
            assert answer.headers["x-headgate-cache"] == "miss"
            assert served.parts.caches is not None
            await served.parts.caches.settled()  # until it is given up, a repeat finds it
        health = decode(await served.client.get("/health"))
        assert health["status"] == "degraded"
        assert (await served.client.get("/health/ready")).status_code == 200


async def test_usage_that_a_server_does_not_send_is_counted(tmp_path: Path) -> None:
    """A stream without usage is charged by the chunks that were seen."""

    class Silent(EchoBackend):
        async def stream(self, request: Any) -> Any:
            async for chunk in super().stream(request):
                if chunk.usage is None:
                    yield chunk

        async def usage_of(self, request_id: str) -> Usage | None:
            return None

    made = {"small": Silent("small", tokens=7), "base": EchoBackend("base")}
    async with gateway(priced(tmp_path), made) as served:
        answer = await served.chat(stream=True, stream_options={"include_usage": True})
        assert events(answer)[-1]["usage"]["completion_tokens"] == 8  # seven words and the end
        assert (await served.settled(answer)).request.cost_nano_usd > 0


async def _drained(served: Gateway) -> Any:
    served.pipeline.draining = True
    return await served.chat()


async def test_drain_refuses_with_retry_after(tmp_path: Path) -> None:
    """While draining, new requests get 503 with Retry-After and readiness goes."""
    async with gateway(settings(tmp_path)) as served:
        answer = await _drained(served)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert (await served.client.get("/health/ready")).status_code == 503
        assert (await served.client.get("/health/live")).status_code == 200


SHADOWED = '[default]\nroute = "small"\nshadow = "base"\n'


async def test_shadow_gets_a_copy_that_the_client_never_sees(tmp_path: Path) -> None:
    """The copy is asked after the answer, its answer discarded, its cost booked as `shadow`."""
    hidden = EchoBackend("base", reply="I am the shadow")
    chosen = priced(tmp_path)
    (tmp_path / "policies" / "test.toml").write_text(SHADOWED)
    async with gateway(chosen, {"small": EchoBackend("small"), "base": hidden}) as served:
        answer = await served.chat("hello there")
        assert decode(answer)["choices"][0]["message"]["content"] == "You said: hello there"
        await served.pipeline.shadows.settled()
        assert [r.body["messages"][-1]["content"] for r in hidden.requests] == ["hello there"]
        assert await served.rows() == 1
        settlement = await served.settled(answer)
        assert [charge.kind for charge in settlement.charges] == ["answer", "shadow"]
        assert settlement.charges[1].backend == "base"
        assert settlement.charges[1].cost_nano_usd > 0
        assert settlement.request.cost_nano_usd == settlement.charges[0].cost_nano_usd
        ((backend, error, same, cost),) = await shadow_rows(served)
        assert (backend, error, bool(same)) == ("base", None, False)
        assert cost == settlement.charges[1].cost_nano_usd


async def shadow_rows(served: Gateway) -> list[Any]:
    """(backend, error, same, cost) of each copy."""
    async with served.parts.engine.connect() as connection:
        columns = shadows.c.backend, shadows.c.error, shadows.c.same, shadows.c.cost_nano_usd
        return list((await connection.execute(select(*columns))).all())


async def test_failing_shadow_harms_nobody(tmp_path: Path) -> None:
    """A shadow that cannot answer leaves the answer and its charge as they are."""
    chosen = priced(tmp_path)
    (tmp_path / "policies" / "test.toml").write_text(SHADOWED)
    backends = {"small": EchoBackend("small"), "base": EchoBackend("base", fault="refuse")}
    async with gateway(chosen, backends) as served:
        answer = await served.chat("hello there")
        assert answer.status_code == 200
        await served.pipeline.shadows.settled()
        settlement = await served.settled(answer)
        assert [charge.kind for charge in settlement.charges] == ["answer"]
        ((backend, error, same, _),) = await shadow_rows(served)
        assert (backend, same) == ("base", None)
        assert error, "the outcome says why"
