"""The client for OpenAI-compatible servers: wire, errors, replicas, cancellation."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.bundled import bundled_path
from backends.client.openai_answers import read_completion
from backends.client.openai_http import OpenAIHTTPBackend
from backends.contract import GenerateRequest
from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendRateLimitedError,
    BackendResponseError,
    BackendStreamError,
    BackendTimeoutError,
    BackendUnavailableError,
    ContextLengthError,
    InvalidRequestError,
)
from backends.tokenizer import Tokenizer
from tests.backends.raw_upstream import SSE_HEAD, http, raw_upstream

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
ANSWER = json.dumps({"choices": [{"index": 0}], "usage": USAGE}).encode()
REFUSED = "http://127.0.0.1:9/v1"


def request(timeout_s: float = 5.0, **body: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id="r1",
        endpoint="chat/completions",
        body={"model": "m", "messages": [{"role": "user", "content": "hi"}], **body},
        headers={"traceparent": "00-1-2-01", "authorization": "Bearer of-the-caller"},
        timeout_s=timeout_s,
    )


def event(content: str | None = None, **fields: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], **fields}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@contextlib.asynccontextmanager
async def client(*urls: str, **options: Any) -> AsyncIterator[OpenAIHTTPBackend]:
    backend = OpenAIHTTPBackend("up", urls or ("http://localhost/v1",), **options)
    try:
        yield backend
    finally:
        await backend.aclose()


async def text_of(backend: OpenAIHTTPBackend, asked: GenerateRequest) -> str:
    return "".join(
        [
            choice["delta"].get("content", "")
            async for chunk in backend.stream(asked)
            for choice in chunk.body["choices"]
        ]
    )


async def test_generate_sends_the_body_and_reads_the_usage() -> None:
    """The body goes out as given, with our key and id; answer and usage come back."""
    async with (
        raw_upstream(http("200 OK", ANSWER)) as up,
        client(up.url, api_key="sk-ours") as backend,
    ):
        completion = await backend.generate(request(seed=3))
    head, _, body = up.requests[0].partition(b"\r\n\r\n")
    assert json.loads(body)["seed"] == 3
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /v1/chat/completions http/1.1"
    assert b"authorization: bearer sk-ours" in lines
    assert b"x-request-id: r1" in lines
    assert b"traceparent: 00-1-2-01" in lines
    assert b"of-the-caller" not in head
    assert completion.body["choices"] == [{"index": 0}]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.cached_tokens) == (5, 3)


async def test_connections_are_kept_alive() -> None:
    """Requests one after another use one connection."""
    async with raw_upstream(http("200 OK", ANSWER)) as up, client(up.url) as backend:
        for _ in range(3):
            await backend.generate(request())
        assert (len(up.requests), up.connections) == (3, 1)


async def test_unix_socket_is_spoken_to(tmp_path: Path) -> None:
    """A backend on a Unix socket answers like one on a port."""
    socket = tmp_path / "s"
    async with raw_upstream(http("200 OK", ANSWER), uds=socket), client(uds=socket) as backend:
        assert (await backend.generate(request())).body["choices"]


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 100_000), max_size=12))
async def test_stream_is_the_same_wherever_the_network_cuts(cuts: list[int]) -> None:
    """Chunk borders anywhere, inside UTF-8 too, comments and CRLF change nothing."""
    usage = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\r\n\r\n"
    data = event("hé") + b": ping\n\n" + event("你好🎉") + FINISH + usage + DONE
    borders = sorted({cut % len(data) for cut in cuts} | {0})
    ends = [*borders[1:], len(data)]
    pieces = [data[a:b] for a, b in zip(borders, ends, strict=True)]
    async with raw_upstream(SSE_HEAD, *pieces) as up, client(up.url) as backend:
        chunks = [chunk async for chunk in backend.stream(request())]
    assert [c.body["choices"][0]["delta"].get("content") for c in chunks[:2]] == ["hé", "你好🎉"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


async def test_stream_asks_for_usage() -> None:
    """Usage is asked for whatever the caller wanted; other stream options stay."""
    async with raw_upstream(SSE_HEAD, FINISH, DONE) as up, client(up.url) as backend:
        await text_of(backend, request(stream_options={"include_obfuscation": False}))
    sent = json.loads(up.requests[0].partition(b"\r\n\r\n")[2])
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True, "include_obfuscation": False}


@pytest.mark.parametrize(
    ("status", "body", "expected", "words"),
    [
        ("400 Bad Request", {"error": {"message": "no", "param": "n"}}, InvalidRequestError, "no"),
        ("422 X", {"detail": "bad seed"}, InvalidRequestError, "bad seed"),
        (
            "400 Bad Request",
            {"error": {"message": "too long", "code": "context_length_exceeded"}},
            ContextLengthError,
            "too long",
        ),
        (
            "400 Bad Request",
            {"message": "This model's maximum context length is 8 tokens"},
            ContextLengthError,
            "8 tokens",
        ),
        ("401 Unauthorized", {"error": "who?"}, BackendResponseError, "API key"),
        ("404 Not Found", {"error": {"message": "what?"}}, BackendResponseError, "base_urls"),
        ("429 Too Many", {"error": {"message": "slow"}}, BackendRateLimitedError, "slow"),
        ("503 Unavailable", {}, BackendOverloadedError, "503"),
        ("504 Gateway Timeout", {}, BackendTimeoutError, "timed out"),
        ("500 Oops", {"error": {"message": "boom"}}, BackendResponseError, "boom"),
        ("302 Found", {}, BackendResponseError, "302"),
    ],
)
async def test_refusals_become_their_errors(
    status: str, body: Any, expected: type[BackendError], words: str
) -> None:
    """Each status raises its error with the upstream's words, streamed or not."""
    answer = http(status, json.dumps(body).encode(), "Retry-After: 7")
    async with raw_upstream(answer) as up, client(up.url) as backend:
        with pytest.raises(expected, match=words) as whole:
            await backend.generate(request())
        with pytest.raises(expected, match=words) as streamed:
            await text_of(backend, request())
    assert type(whole.value) is type(streamed.value) is expected
    if isinstance(whole.value, BackendOverloadedError):
        assert whole.value.retry_after_s == 7
    if words == "no":
        assert whole.value.param == "n"


@pytest.mark.parametrize(
    "answer",
    [
        http("200 OK", b"<html>"),
        http("200 OK", b"[]"),
        http("200 OK", b'{"choices": null}'),
        http("200 OK", b'{"choices": [], "usage": {"prompt_tokens": "many"}}'),
        http("200 OK", b"\xff"),
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
    ],
)
async def test_garbage_is_a_response_error(answer: bytes) -> None:
    """What is no OpenAI response is named so, not passed on."""
    async with raw_upstream(answer) as up, client(up.url) as backend:
        with pytest.raises(BackendResponseError):
            await backend.generate(request())


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([event("half")], "finish_reason"),
        ([event("half"), b'data: {"error": {"message": "out of memory"}}\n\n'], "out of memory"),
        ([event("half"), b"data: {bro\n\n"], "no OpenAI chunk"),
        ([event("half"), b"data: 3\n\n"], "not an object"),
    ],
)
async def test_broken_streams_raise_after_what_came(pieces: list[bytes], words: str) -> None:
    """Whatever breaks a stream, chunks before it are delivered and a stream error follows."""
    async with raw_upstream(SSE_HEAD, *pieces) as up, client(up.url) as backend:
        stream = backend.stream(request())
        chunk = await anext(stream)
        assert chunk.body["choices"][0]["delta"]["content"] == "half"
        with pytest.raises(BackendStreamError, match=words):
            await anext(stream)


async def test_connection_lost_in_a_chunked_stream_is_a_stream_error() -> None:
    """A server killed in mid-stream leaves the chunked encoding open: that is an error."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = event("half")
    piece = f"{len(data):x}\r\n".encode() + data + b"\r\n"
    async with raw_upstream(head, piece) as up, client(up.url) as backend:
        stream = backend.stream(request())
        await anext(stream)
        with pytest.raises(BackendStreamError, match="broke off"):
            await anext(stream)


async def test_stream_that_ends_without_done_but_finished_is_whole() -> None:
    """Some servers never send [DONE]: a finish_reason is enough."""
    async with raw_upstream(SSE_HEAD, event("all"), FINISH) as up, client(up.url) as backend:
        assert await text_of(backend, request()) == "all"


@pytest.mark.parametrize("pieces", [(), (SSE_HEAD,), (SSE_HEAD, event("half"))])
async def test_silence_is_a_timeout(pieces: tuple[bytes, ...]) -> None:
    """A server that says nothing (more) is given up after the timeout."""
    async with raw_upstream(*pieces, hold_open=True) as up, client(up.url) as backend:
        started = time.monotonic()
        with pytest.raises(BackendTimeoutError):
            await text_of(backend, request(timeout_s=0.2))
        assert time.monotonic() - started < 2


async def test_slow_answer_is_a_timeout() -> None:
    """A whole answer has its time limit in total, and the configured one caps the request's."""
    async with raw_upstream(hold_open=True) as up, client(up.url, timeout_s=0.2) as backend:
        with pytest.raises(BackendTimeoutError, match=r"0\.2 s"):
            await backend.generate(request(timeout_s=60))


async def test_closing_a_stream_closes_the_connection() -> None:
    """Closing the iterator is seen by the server at once."""
    async with raw_upstream(SSE_HEAD, event("a"), hold_open=True) as up, client(up.url) as backend:
        stream = backend.stream(request())
        await anext(stream)
        await stream.aclose()
        await asyncio.wait_for(up.closed.wait(), 1)
        assert backend.outstanding == 0


async def test_cancelling_a_call_closes_the_connection() -> None:
    """A cancelled call is seen by the server at once."""
    async with raw_upstream(hold_open=True) as up, client(up.url) as backend:
        task = asyncio.create_task(backend.generate(request()))
        await asyncio.wait_for(up.asked.wait(), 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(up.closed.wait(), 1)
        assert backend.outstanding == 0


@pytest.mark.parametrize("over_socket", [False, True])
async def test_a_kept_connection_that_had_been_closed_costs_no_request(
    over_socket: bool, tmp_path: Path
) -> None:
    """A request on a connection that its server had closed goes out once more, on a new one."""
    uds = tmp_path / "up" if over_socket else None
    where: dict[str, Any] = {} if uds is None else {"uds": uds}
    async with raw_upstream(http("200 OK", ANSWER), uds=uds) as up:
        async with client(*([up.url] if uds is None else []), **where) as backend:
            up.stale = b""
            for _ in range(2):
                assert (await backend.generate(request())).body == json.loads(ANSWER)
        assert (up.connections, len(up.requests)) == (2, 3)


async def test_a_connection_lost_while_it_answers_is_not_asked_again() -> None:
    """Once a byte of the response was read the request may have been worked on."""
    async with raw_upstream(http("200 OK", ANSWER)) as up, client(up.url) as backend:
        up.stale = b"HTTP/1.1 200 OK\r\nContent-"
        await backend.generate(request())
        with pytest.raises(BackendError):
            await backend.generate(request())
        assert len(up.requests) == 2


async def test_a_new_connection_that_is_closed_is_not_asked_again() -> None:
    """A server that closes on a first request had it: asking again is the policy's to decide."""
    async with raw_upstream() as up, client(up.url) as backend:
        with pytest.raises(BackendUnavailableError, match="without a whole answer"):
            await backend.generate(request())
        assert len(up.requests) == 1


async def test_refused_connection_says_so(tmp_path: Path) -> None:
    """No server on the port or socket: unavailable, with a hint; a probe says unready."""
    async with client(REFUSED) as port, client(uds=tmp_path / "none") as socket:
        for backend in (port, socket):
            with pytest.raises(BackendUnavailableError, match="is it running"):
                await backend.generate(request())
            health = await backend.probe()
            assert not health.ready
            assert "is it running" in health.detail


async def test_replicas_share_the_load_and_dead_ones_are_skipped() -> None:
    """Least outstanding first; an address that refuses connections costs no request."""
    async with (
        raw_upstream(http("200 OK", ANSWER)) as one,
        raw_upstream(http("200 OK", ANSWER)) as two,
        client(one.url, REFUSED, two.url) as backend,
    ):
        for _ in range(12):
            await backend.generate(request())
        assert len(one.requests) + len(two.requests) == 12
        assert min(len(one.requests), len(two.requests)) >= 4


async def test_busy_replica_is_passed_over() -> None:
    """While one replica is busy with a stream, the next request goes to the other."""
    async with (
        raw_upstream(SSE_HEAD, event("a"), hold_open=True) as busy,
        raw_upstream(http("200 OK", ANSWER)) as idle,
        client(busy.url, idle.url) as backend,
    ):
        streams = []
        while not busy.requests:
            stream = backend.stream(request())
            streams.append(stream)
            with contextlib.suppress(BackendError):
                await anext(stream)
        for _ in range(3):
            assert (await backend.generate(request())).usage is not None
        assert len(busy.requests) == 1
        for stream in streams:
            await stream.aclose()


async def test_max_concurrency_holds_requests_back() -> None:
    """With one slot taken, a second request waits and then is refused as overload."""
    async with (
        raw_upstream(SSE_HEAD, event("a"), hold_open=True) as up,
        client(up.url, max_concurrency=1) as backend,
    ):
        stream = backend.stream(request())
        await anext(stream)
        with pytest.raises(BackendOverloadedError, match="max_concurrency = 1"):
            await backend.generate(request(timeout_s=0.1))
        assert len(up.requests) == 1
        await stream.aclose()
        assert backend.outstanding == 0


async def test_probe_reads_our_own_health() -> None:
    """Our server's /health gives load, capacity, revision and context."""
    health = {
        "ready": True,
        "running": 2,
        "waiting": 1,
        "capacity": 64,
        "model_revision": "abc",
        "context_tokens": 2048,
    }
    body = json.dumps(health).encode()
    async with raw_upstream(http("200 OK", body)) as up, client(up.url, up.url) as backend:
        found = await backend.probe()
    assert found.accepts is None
    assert up.requests[0].startswith(b"GET /health ")
    assert (found.running, found.waiting, found.capacity) == (4, 2, 128)
    assert (found.ready, found.model_revision, found.context_tokens) == (True, "abc", 2048)


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [(["a", "b"], ["b", "c"], ("b",)), (["a"], None, None), ([], [], ())],
)
async def test_replicas_accept_what_all_of_them_do(first: Any, second: Any, common: Any) -> None:
    """Nothing is known where one of them does not say."""

    def said(accepts: Any) -> bytes:
        health = {"model_revision": "abc", "accepts": accepts}
        return http("200 OK", json.dumps(health).encode())

    async with (
        raw_upstream(said(first)) as one,
        raw_upstream(said(second)) as other,
        client(one.url, other.url) as backend,
    ):
        assert (await backend.probe()).accepts == common


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (http("200 OK", b'{"data":[{"id":"m","max_model_len":99}]}'), True),
        (http("404 Not Found", b"{}"), True),
        (http("401 Unauthorized", b"{}"), False),
        (http("500 Oops", b"{}"), False),
    ],
)
async def test_probe_of_a_foreign_server(answer: bytes, ready: bool) -> None:
    """A server without our /health is ready if it lists models, or at least answers."""
    async with raw_upstream(answer) as up, client(up.url, model="m") as backend:
        found = await backend.probe()
    assert found.ready is ready
    if b"max_model_len" in answer:
        assert found.context_tokens == 99


async def test_small_questions_are_answered_or_none() -> None:
    """/tokenize, /requests/{id}/usage and /clock are read where present, None where not."""
    answer = {"count": 12, "usage": USAGE, "busy_ns": 5}
    async with raw_upstream(http("200 OK", json.dumps(answer).encode())) as up:
        async with client(up.url) as backend:
            assert await backend.count_tokens({"model": "m", "messages": [], "seed": 1}) == 12
            usage = await backend.usage_of("r1")
            assert usage is not None
            assert usage.completion_tokens == 2
            assert await backend.clocks() == [answer]
        assert [r.split(b" ")[1] for r in up.requests] == [
            b"/tokenize",
            b"/requests/r1/usage",
            b"/clock",
        ]
    async with raw_upstream(http("404 Not Found", b"{}")) as up, client(up.url) as backend:
        assert await backend.count_tokens({"model": "m", "prompt": "x"}) is None
        assert await backend.usage_of("r1") is None
        assert await backend.clocks() == []
    async with client(REFUSED) as backend:
        assert await backend.count_tokens({"model": "m", "prompt": "x"}) is None
        assert await backend.usage_of("r1") is None


async def test_a_tokenizer_of_ours_counts_without_asking() -> None:
    """Chats by the template, texts and token ids as they are; nobody answers at the address."""
    tokenizer = Tokenizer.from_folder(bundled_path("small"))
    messages = [{"role": "user", "content": "Hello!"}]
    async with client(REFUSED, tokenizer=tokenizer) as backend:
        chat = await backend.count_tokens({"messages": messages})
        assert chat == len(tokenizer.encode_chat(messages))
        one = len(tokenizer.encode("Hello!"))
        assert await backend.count_tokens({"prompt": "Hello!"}) == one
        assert await backend.count_tokens({"prompt": ["Hello!", "Hello!"]}) == 2 * one
        assert await backend.count_tokens({"prompt": [1, 2, 3]}) == 3
        assert await backend.count_tokens({"prompt": [[1, 2], [3]]}) == 3


@pytest.mark.parametrize(
    ("timings", "details", "cached"),
    [
        ({"cache_n": 90, "prompt_n": 10}, None, 90),
        ({"prompt_n": 10, "prompt_ms": 3.5}, None, 90),
        ({"cache_n": 0, "prompt_n": 100}, None, 0),
        ({"cache_n": 90, "prompt_n": 10}, {"cached_tokens": 64}, 64),
        ({"cache_n": 200}, None, 0),
        ({"cache_n": "many"}, None, 0),
        ("none", None, 0),
    ],
)
def test_llama_cpp_s_timings_tell_of_its_cache(
    timings: object, details: dict[str, int] | None, cached: int
) -> None:
    """Where `usage` does not say what of a prompt was cached, its timings do."""
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "prompt_tokens_details": details}
    body = {"choices": [{"index": 0}], "usage": usage, "timings": timings}
    found = read_completion("up", "chat/completions", json.dumps(body).encode()).usage
    assert found is not None
    assert found.cached_tokens == cached
