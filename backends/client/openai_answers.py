"""What an OpenAI-compatible server answers, decoded: a whole body, or the events of a stream."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
import msgspec
from msgspec.structs import replace

from backends.client.http_replica import TRANSPORT_ERRORS, body_pieces, drain, transport_cause
from backends.client.openai_errors import broken_off, describe_error
from backends.client.sse_reader import SSEReader
from backends.contract import Chunk, Completion, Endpoint, Usage
from backends.errors import BackendResponseError, BackendTimeoutError
from backends.wire import usage_from_wire


def read_completion(backend: str, endpoint: Endpoint, content: bytes) -> Completion:
    """A whole answer. Raises BackendResponseError: it is none."""
    needed = "data" if endpoint == "embeddings" else "choices"
    try:
        body = msgspec.json.decode(content)
        if isinstance(body, dict) and isinstance(body.get(needed), list):
            return Completion(body=body, usage=_usage(body))
        problem = f"no list {needed!r} in it"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = str(error)
    raise BackendResponseError(
        f"backend {backend!r} answered 200 with no OpenAI response: {problem}",
        backend=backend,
    )


async def read_chunks(
    backend: str, response: httpx.Response, timeout_s: float
) -> AsyncGenerator[Chunk, None]:
    """Decode the events of a stream up to [DONE].

    Raises:
        BackendError: it was silent for `timeout_s`, broke off, or holds no chunks.
    """
    reader = SSEReader()
    decode = msgspec.json.decode
    finished = False
    pieces = body_pieces(response)
    try:
        async for piece in pieces:
            for data in reader.feed(piece):
                if data == b"[DONE]":
                    await drain(pieces)
                    return
                chunk = _chunk(backend, decode(data))
                finished = finished or _finishes(chunk.body)
                yield chunk
    except TRANSPORT_ERRORS as error:
        cause = transport_cause(error)
        if isinstance(cause, TimeoutError):
            raise BackendTimeoutError(
                f"backend {backend!r} fell silent for {timeout_s:g} s in its answer",
                backend=backend,
            ) from error
        raise broken_off(backend, repr(cause)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise broken_off(backend, f"it sent something that is no OpenAI chunk: {error}") from error
    finally:
        await pieces.aclose()
    if not finished:
        raise broken_off(backend, "it ended without a finish_reason")


def _chunk(backend: str, body: Any) -> Chunk:
    if not isinstance(body, dict):
        raise ValueError(f"an event holds {type(body).__name__}, not an object")
    if body.get("error"):
        raise broken_off(backend, describe_error(body)[0] or str(body["error"]))
    return Chunk(body=body, usage=_usage(body))


def _usage(body: Mapping[str, Any]) -> Usage | None:
    """As the server counts; llama.cpp tells beside it what of a prompt it had read before."""
    usage, timings = usage_from_wire(body.get("usage")), body.get("timings")
    if usage is None or usage.cached_tokens or not isinstance(timings, dict):
        return usage
    cached, read = timings.get("cache_n"), timings.get("prompt_n")
    if cached is None and isinstance(read, int):  # before it had a figure of its own
        cached = usage.prompt_tokens - read
    known = isinstance(cached, int) and 0 < cached <= usage.prompt_tokens
    return replace(usage, cached_tokens=cached) if known else usage


def _finishes(body: Mapping[str, Any]) -> bool:
    choices = body.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and bool(choice.get("finish_reason")) for choice in choices
    )
