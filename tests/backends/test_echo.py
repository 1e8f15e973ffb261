"""The echo backend: deterministic, counted, failing on demand."""

import asyncio
import base64
import struct
from typing import Any

import pytest

from backends.contract import Endpoint, GenerateRequest
from backends.echo import EchoBackend
from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendResponseError,
    BackendStreamError,
    BackendTimeoutError,
    BackendUnavailableError,
    InvalidRequestError,
)


def chat(text: str = "one two three", **body: Any) -> GenerateRequest:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}]
    return GenerateRequest(
        request_id="r1",
        endpoint="chat/completions",
        body={"model": "echo", "messages": messages, **body},
        timeout_s=0.05,
    )


async def test_answer_repeats_the_last_user_message() -> None:
    """The same request has the same answer, with its words counted."""
    answers = [await EchoBackend().generate(chat()) for _ in range(2)]
    assert answers[0].body["choices"][0]["message"]["content"] == "You said: one two three"
    assert answers[0].body["choices"] == answers[1].body["choices"]
    assert answers[0].usage is not None
    assert (answers[0].usage.prompt_tokens, answers[0].usage.completion_tokens) == (7, 5)


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
async def test_stream_joins_to_the_whole_answer(endpoint: Endpoint) -> None:
    """Words of a stream join to the answer that generate gives; the usage comes last."""
    backend = EchoBackend(ns_per_token=10)
    body = {"model": "echo", "messages": chat().body["messages"], "prompt": "one two", "n": 2}
    if endpoint == "completions":
        del body["messages"]
    request = GenerateRequest(request_id="r", endpoint=endpoint, body=body)
    whole = await backend.generate(request)
    texts = {0: "", 1: ""}
    chunks = [chunk async for chunk in backend.stream(request)]
    for chunk in chunks:
        for choice in chunk.body["choices"]:
            texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get(
                "content", ""
            )
    for choice in whole.body["choices"]:
        text = choice["text"] if endpoint == "completions" else choice["message"]["content"]
        assert texts[choice["index"]] == text
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.headgate is not None
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize(
    ("body", "text", "reason"),
    [
        ({"max_tokens": 2}, "You said: ", "length"),
        ({"max_completion_tokens": 1}, "You ", "length"),
        ({"stop": ["two"]}, "You said: one ", "stop"),
        ({"stop": "nowhere"}, "You said: one two three", "stop"),
    ],
)
async def test_limits_and_stops_are_kept(body: dict[str, Any], text: str, reason: str) -> None:
    """max_tokens counts words, stop strings are cut off."""
    choice = (await EchoBackend().generate(chat(**body))).body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("refuse", BackendUnavailableError),
        ("overload", BackendOverloadedError),
        ("error", BackendResponseError),
        ("hang", BackendTimeoutError),
    ],
)
async def test_faults_raise_their_errors(fault: Any, error: type[BackendError]) -> None:
    """Each fault raises the error a real server's failure would, once, then it answers again."""
    backend = EchoBackend(faults=[fault, fault, None], retry_after_s=7)
    with pytest.raises(error):
        await backend.generate(chat())
    with pytest.raises(error) as caught:
        await anext(backend.stream(chat()))
    if isinstance(caught.value, BackendOverloadedError):
        assert caught.value.retry_after_s == 7
    assert await backend.generate(chat())


async def test_cut_stream_breaks_off_half_way_and_keeps_its_usage() -> None:
    """A cut stream serves half of its words; what was served can be asked for afterwards."""
    backend = EchoBackend(fault="cut")
    stream = backend.stream(chat())
    deltas = [(await anext(stream)).body["choices"][0]["delta"] for _ in range(3)]
    assert [delta["content"] for delta in deltas] == ["", "You ", "said: "]
    with pytest.raises(BackendStreamError):
        await anext(stream)
    usage = await backend.usage_of("r1")
    assert usage is not None
    assert usage.completion_tokens == 2


async def test_closed_stream_is_no_longer_running() -> None:
    """Closing the iterator ends the request; load goes back to none."""
    backend = EchoBackend(token_delay_s=10)
    stream = backend.stream(chat())
    await anext(stream)
    assert (await backend.probe()).running == 1
    await stream.aclose()
    assert (await backend.probe()).running == 0


async def test_embeddings_of_texts_that_share_words_are_similar() -> None:
    """Vectors are unit length, deterministic, and closer where words are shared."""
    body = {"model": "e", "input": ["how do cats sleep", "how do dogs sleep", "tax law in 1990"]}
    request = GenerateRequest(request_id="r", endpoint="embeddings", body=body)
    rows = (await EchoBackend().generate(request)).body["data"]
    first, second, third = [row["embedding"] for row in rows]
    similar = sum(a * b for a, b in zip(first, second, strict=True))
    different = sum(a * b for a, b in zip(first, third, strict=True))
    assert sum(a * a for a in first) == pytest.approx(1)
    assert similar > 0.5 > different
    packed = GenerateRequest(
        request_id="r", endpoint="embeddings", body={**body, "encoding_format": "base64"}
    )
    raw = (await EchoBackend().generate(packed)).body["data"][0]["embedding"]
    assert struct.unpack("<384f", base64.b64decode(raw)) == pytest.approx(first)


@pytest.mark.parametrize("value", [[], [[1, 2]], 3])
async def test_embeddings_of_anything_but_strings_are_refused(value: Any) -> None:
    """The echo has no tokenizer: ids are refused by name."""
    request = GenerateRequest(request_id="r", endpoint="embeddings", body={"input": value})
    with pytest.raises(InvalidRequestError) as caught:
        await EchoBackend().generate(request)
    assert caught.value.param == "input"


async def test_cancelled_request_is_no_longer_running() -> None:
    """A cancelled call ends at once."""
    backend = EchoBackend(delay_s=10)
    task = asyncio.create_task(backend.generate(chat()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await backend.probe()).running == 0
