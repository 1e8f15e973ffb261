"""One call of a backend: what it is sent, and a call that another one may run beside."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine

from backends.contract import Chunk, Completion, GenerateRequest, Usage
from gateway.api.sse import Assembler
from gateway.api.translate import backend_body
from gateway.dispatch.deadlines import Limit
from gateway.exchange import Exchange
from gateway.ledger.foreign_machine import Unwatched
from gateway.parts import Parts
from gateway.spending import tightest

_SUFFIX = "-hedge"
"""Of a second call's request id at its backend."""
_BEHIND = 1_000_000
"""The priority of lines of batches at our engines: whoever waits for an answer comes first."""


def request_of(parts: Parts, x: Exchange, name: str, *, beside: bool = False) -> GenerateRequest:
    """What a backend is sent; `beside`: while another call for the same request is under way."""
    settings = parts.backend_settings[name]
    assert x.asked is not None
    assert x.decision is not None
    assert x.facts is not None
    body = backend_body(
        x.asked.raw,
        model=settings.model if settings.kind == "openai" else name,
        needs=x.facts.needs,
        max_tokens=tightest(x.decision.max_tokens, x.token_cap),
        stream=x.streams,
    )
    metered = x.reservation is not None and settings.kind == "engine"
    if x.streams and (metered or x.continuous_usage):
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if x.in_batch and settings.price is not None and settings.price.batch_service_tier is not None:
        body["service_tier"] = settings.price.batch_service_tier
    if x.in_batch and settings.kind == "engine" and x.endpoint != "embeddings":
        body["priority"] = _BEHIND
    return GenerateRequest(
        request_id=x.request_id + _SUFFIX if beside else x.request_id,
        endpoint=x.endpoint,
        body=body | x.extra[name] if name in x.extra else body,
        headers=x.options.passed_on(),
        timeout_s=settings.timeout_s,
        beside=x.request_id if beside else None,
    )


def shown(error: BaseException) -> str:
    """An error in a request's attempts."""
    if isinstance(error, asyncio.CancelledError):
        return "given up: the client left, or the time was up"
    return f"{type(error).__name__}: {error}"


class Call:
    """One of the two, from its start until it is settled; counted as running there meanwhile."""

    def __init__(
        self,
        parts: Parts,
        x: Exchange,
        backend: str,
        request: GenerateRequest,
        at_end: Callable[[], None] | None = None,
        limit: Limit | None = None,
    ) -> None:
        self.backend = backend
        self.request = request
        self.watched = Unwatched()
        self.usage: Usage | None = None
        self.completion: Completion | None = None
        self.began = time.perf_counter()
        self._server = parts.backends[backend]
        self._limit = limit
        self._chunks: AsyncGenerator[Chunk, None] | None = None
        self._seen: list[Chunk] = []
        self._counted = contextlib.ExitStack()
        self._counted.enter_context(parts.registry.running(backend))
        if at_end is not None:
            self._counted.callback(at_end)
        assert x.facts is not None
        prompt_tokens = x.facts.features.prompt_tokens
        flight = parts.foreign.flight(self.watched, backend, prompt_tokens, request.body)
        self._counted.enter_context(flight)
        streams = bool(request.body.get("stream"))
        work: Coroutine[None, None, None] = self._open() if streams else self._whole()
        self.answering = asyncio.create_task(work, name=f"call {request.request_id}")
        """Done with the answer, or the first token of it."""

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.began

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The stream, from its beginning."""
        assert self._chunks is not None
        for chunk in self._seen:
            yield chunk
        async for chunk in self._chunks:
            yield chunk

    async def stop(self) -> None:
        """Cancel it at its backend, as far as it is under way."""
        self.answering.cancel()
        await asyncio.gather(self.answering, return_exceptions=True)
        if self._chunks is not None:
            await self._chunks.aclose()

    def close(self) -> None:
        """It is settled: running there no more."""
        self._counted.close()

    async def _open(self) -> None:
        chunks = self._server.stream(self.request)
        self._chunks = chunks if self._limit is None else self._limit.first(chunks)
        async for chunk in self._chunks:
            self._seen.append(chunk)
            self.usage = chunk.usage or self.usage
            if Assembler().add(chunk.body):
                self.watched.tokens_seen = 1
                self.watched.first_token_at = time.perf_counter()
                return

    async def _whole(self) -> None:
        answering = self._server.generate(self.request)
        self.completion = await (self._limit.whole(answering) if self._limit else answering)
        self.usage = self.completion.usage


async def first_answer(calls: list[Call]) -> Call:
    """The call that answers first; a failed one wins only when no other is left."""
    open_calls = {call.answering: call for call in calls}
    while True:
        done, _ = await asyncio.wait(open_calls, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=lambda task: open_calls[task].began):
            call = open_calls.pop(task)
            if task.exception() is None or not open_calls:
                return call
