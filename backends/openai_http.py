"""Any OpenAI-compatible server as a `Backend`: our own engine over a socket, or somebody else's.

Requests go straight to httpx's aiohttp transport: the client layer above it costs more CPU per
call than everything else here, and adds nothing that a fixed address needs.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from backends.breaker import Breaker, BreakerSettings
from backends.contract import BackendHealth, Chunk, Completion, GenerateRequest, Usage
from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendResponseError,
    BackendStreamError,
    BackendTimeoutError,
)
from backends.http_replica import (
    TRANSPORT_ERRORS,
    Replica,
    body_pieces,
    drain,
    never_connected,
    read_body,
    release,
    transport_cause,
)
from backends.openai_errors import describe_error, error_from_response, transport_error
from backends.openai_health import foreign_health, own_health, why_unready
from backends.replica_set import Place, ReplicaSet
from backends.server_metrics import ServerMetrics
from backends.sse_reader import SSEReader
from backends.wire import usage_from_wire

if TYPE_CHECKING:
    from backends.tokenizer import Tokenizer  # the library takes a moment, and few ask for it

_PROBE_TIMEOUT_S = 5.0
_SKIP_AFTER_REFUSAL_S = 1.0
_QUESTION = GenerateRequest(request_id="", endpoint="chat/completions", body={})


class OpenAIHTTPBackend:
    """A model behind OpenAI's HTTP API on one or more addresses.

    Attributes:
        name: what the gateway calls it.
        outstanding: requests under way or waiting for a free slot.
    """

    def __init__(
        self,
        name: str,
        base_urls: Sequence[str] = ("http://localhost/v1",),
        *,
        model: str = "",
        api_key: str | None = None,
        uds: str | Path | Sequence[str | Path] | None = None,
        timeout_s: float = 600.0,
        max_concurrency: int | None = None,
        breaker: BreakerSettings | None = None,
        tokenizer: "Tokenizer | None" = None,
    ) -> None:
        """`base_urls` end in the API's root, usually /v1. `uds`: Unix sockets, one per replica,
        each spoken to with the first base URL. `timeout_s` caps every request's own timeout.
        `breaker`: when one of several addresses is left alone. `tokenizer`: counts prompts here.
        """
        self.name = name
        self.model = model
        self.outstanding = 0
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(max_concurrency) if max_concurrency else None
        self._max_concurrency = max_concurrency or 0
        headers = [
            (b"content-type", b"application/json"),
            # Decompressing costs more than a local hop saves.
            (b"accept-encoding", b"identity"),
        ]
        if api_key:
            headers.append((b"authorization", f"Bearer {api_key}".encode()))
        self._headers = headers
        if uds is None:
            self._replicas = [Replica(url, None, breaker) for url in base_urls]
        else:
            sockets = [uds] if isinstance(uds, str | Path) else uds
            self._replicas = [Replica(base_urls[0], str(socket), breaker) for socket in sockets]
        if not self._replicas:
            raise ValueError(f"backend {name!r} has no address; give base_urls or uds")
        self._set = ReplicaSet(self._replicas)
        self._no_tokenize = False
        self._tokenizer = tokenizer

    async def generate(self, request: GenerateRequest) -> Completion:
        """Answer whole. Raises BackendError: see `backends.errors`."""
        timeout_s = min(request.timeout_s, self._timeout_s)
        content = msgspec.json.encode(request.body)
        ends_at = time.monotonic() + timeout_s
        async with (
            self._slot(timeout_s),
            self._placed(request, content, timeout_s) as response,
        ):
            left_s = max(ends_at - time.monotonic(), 0.001)
            try:
                async with asyncio.timeout(left_s):
                    body = await self._body(response)
            except TimeoutError as error:
                raise self._timed_out(timeout_s) from error
            if response.status_code != 200:
                status, headers = response.status_code, response.headers
                raise error_from_response(self.name, status, headers, body)
            return self._completion(request, body)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Answer chunk by chunk, usage always asked for. Closing it closes the connection."""
        timeout_s = min(request.timeout_s, self._timeout_s)
        body = dict(request.body)
        body["stream"] = True
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        content = msgspec.json.encode(body)
        async with (
            self._slot(timeout_s),
            self._placed(request, content, timeout_s) as response,
        ):
            if response.status_code != 200:
                raise await self._refusal(response, timeout_s)
            async with contextlib.aclosing(self._chunks(response, timeout_s)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def probe(self) -> BackendHealth:
        """Health of all replicas together: ready if one is, loads added up."""
        found = await asyncio.gather(*(self._probe(replica) for replica in self._replicas))
        for number, health in enumerate(found):
            self._set.probed(number, health.ready)
        ready = [health for health in found if health.ready]
        contexts = [h.context_tokens for h in ready if h.context_tokens is not None]
        kv_usages = [h.kv_usage_ratio for h in ready if h.kv_usage_ratio is not None]
        return BackendHealth(
            ready=bool(ready),
            running=sum(health.running for health in ready),
            waiting=sum(health.waiting for health in ready),
            capacity=sum(health.capacity for health in ready) or self._max_concurrency,
            model_revision="+".join(sorted({h.model_revision for h in ready if h.model_revision})),
            context_tokens=min(contexts, default=None),
            kv_usage_ratio=max(kv_usages, default=None),
            detail="; ".join(dict.fromkeys(health.detail for health in found if health.detail)),
        )

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Exact prompt tokens by our copy of the tokenizer, else by the server's /tokenize (ours,
        vLLM's); None if it has none."""
        if self._tokenizer is not None:
            return await asyncio.to_thread(_count, self._tokenizer, dict(body))
        if self._no_tokenize:
            return None
        fields = ("model", "messages", "prompt", "tools")
        question = {key: body[key] for key in fields if body.get(key) is not None}
        try:
            status, answer = await self._ask("POST", "/tokenize", msgspec.json.encode(question))
        except BackendError:
            return None
        if status in (404, 405, 501):
            self._no_tokenize = True
        count = answer.get("count") if status == 200 else None
        return count if isinstance(count, int) else None

    async def ask(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST to a path beside the API (/tokenize, /detokenize): status and JSON object.

        Raises:
            BackendError: the server does not answer.
        """
        return await self._ask("POST", path, msgspec.json.encode(body))

    async def usage_of(self, request_id: str) -> Usage | None:
        """Final usage of a request that was cut off; None if no replica knows it."""
        path = f"/requests/{request_id}/usage"
        for replica in self._replicas:
            try:
                status, answer = await self._ask("GET", path, replica=replica)
                usage = usage_from_wire(answer.get("usage")) if status == 200 else None
            except (BackendError, msgspec.ValidationError):
                continue
            if usage is not None:
                return usage
        return None

    async def clocks(self) -> list[dict[str, int]]:
        """Each answering replica's measured machine time: `/clock` of our own servers."""
        found = []
        for replica in self._replicas:
            with contextlib.suppress(BackendError):
                status, answer = await self._ask("GET", "/clock", replica=replica)
                if status == 200 and "busy_ns" in answer:
                    found.append(answer)
        return found

    async def metrics_text(self) -> str:
        """What the answering replicas say at `/metrics`, one after another."""
        found = []
        for replica in self._replicas:
            with contextlib.suppress(BackendError):
                status, body = await self._ask_raw("GET", "/metrics", replica=replica)
                if status == 200:
                    found.append(body.decode("utf-8", "replace"))
        return "\n".join(found)

    async def aclose(self) -> None:
        """Close all connections."""
        for replica in self._replicas:
            await replica.transport.aclose()

    @contextlib.asynccontextmanager
    async def _slot(self, timeout_s: float) -> AsyncIterator[None]:
        """One of `max_concurrency`, waited for at most `timeout_s`."""
        self.outstanding += 1
        try:
            if self._slots is None:
                yield
                return
            if self._slots.locked():
                try:
                    await asyncio.wait_for(self._slots.acquire(), timeout_s)
                except TimeoutError:
                    raise BackendOverloadedError(
                        f"backend {self.name!r} had no free slot (max_concurrency = "
                        f"{self._max_concurrency}) within {timeout_s:g} s",
                        backend=self.name,
                    ) from None
            else:
                await self._slots.acquire()
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self.outstanding -= 1

    @property
    def breakers(self) -> dict[str, Breaker]:
        """Of each address, where there are several."""
        if len(self._replicas) == 1:
            return {}
        return {replica.address: replica.breaker for replica in self._replicas}

    @property
    def on_breaker(self) -> Callable[[str], None] | None:
        """Told of each address that was ejected or is back."""
        return self._set.on_breaker

    @on_breaker.setter
    def on_breaker(self, told: Callable[[str], None] | None) -> None:
        self._set.on_breaker = told

    @contextlib.asynccontextmanager
    async def _placed(
        self, request: GenerateRequest, content: bytes, timeout_s: float
    ) -> AsyncIterator[httpx.Response]:
        """The response's head; its replica hears how it went on while inside."""
        response, place = await self._send(request, content, timeout_s)
        try:
            yield response
        except BaseException as error:
            place.failed(error)
            raise
        else:
            place.answered()
        finally:
            place.leave()
            await release(response)

    async def _send(
        self, request: GenerateRequest, content: bytes, timeout_s: float
    ) -> tuple[httpx.Response, Place]:
        """The response's head, from the first replica in order that accepts the connection."""
        headers = list(self._headers)
        headers.append((b"x-request-id", request.request_id.encode()))
        for key, value in request.headers.items():
            if key.lower() not in ("x-request-id", "authorization", "content-type", "host"):
                headers.append((key.encode(), value.encode()))
        refused: BackendError | None = None
        blocks, tokens = self._set.size_of(request, len(content))
        for number in self._set.in_order(request, blocks, tokens):
            place = self._set.take(number, request, blocks, tokens)
            replica = place.replica
            url = replica.urls[request.endpoint]
            try:
                async with asyncio.timeout(timeout_s):
                    response = await replica.send("POST", url, headers, content, timeout_s)
                replica.skip_until = 0.0
                return response, place
            except TimeoutError as error:
                failure: BackendError = self._timed_out(timeout_s)
                failure.__cause__ = error
            except TRANSPORT_ERRORS as error:
                failure = transport_error(self.name, error)
                failure.__cause__ = error
                if never_connected(error):
                    # Nothing was sent: another replica may have the request.
                    replica.skip_until = time.monotonic() + _SKIP_AFTER_REFUSAL_S
                    refused = failure
            except BaseException:
                place.leave()
                raise
            place.failed(failure)
            place.leave()
            if failure is not refused:
                raise failure
        assert refused is not None
        raise refused

    async def _body(self, response: httpx.Response) -> bytes:
        """All of it. Raises BackendStreamError: it broke off."""
        try:
            return await read_body(response)
        except TRANSPORT_ERRORS as error:
            if isinstance(transport_cause(error), TimeoutError):
                raise
            raise self._broken(repr(transport_cause(error))) from error

    async def _chunks(
        self, response: httpx.Response, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """Decode the events of a stream up to [DONE]."""
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
                    chunk = self._chunk(decode(data))
                    finished = finished or _finishes(chunk.body)
                    yield chunk
        except TRANSPORT_ERRORS as error:
            cause = transport_cause(error)
            if isinstance(cause, TimeoutError):
                raise BackendTimeoutError(
                    f"backend {self.name!r} fell silent for {timeout_s:g} s in its answer",
                    backend=self.name,
                ) from error
            raise self._broken(repr(cause)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise self._broken(f"it sent something that is no OpenAI chunk: {error}") from error
        finally:
            await pieces.aclose()
        if not finished:
            raise self._broken("it ended without a finish_reason")

    def _chunk(self, body: Any) -> Chunk:
        if not isinstance(body, dict):
            raise ValueError(f"an event holds {type(body).__name__}, not an object")
        if body.get("error"):
            raise self._broken(describe_error(body)[0] or str(body["error"]))
        return Chunk(body=body, usage=usage_from_wire(body.get("usage")))

    def _completion(self, request: GenerateRequest, content: bytes) -> Completion:
        needed = "data" if request.endpoint == "embeddings" else "choices"
        try:
            body = msgspec.json.decode(content)
            if isinstance(body, dict) and isinstance(body.get(needed), list):
                return Completion(body=body, usage=usage_from_wire(body.get("usage")))
            problem = f"no list {needed!r} in it"
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problem = str(error)
        raise BackendResponseError(
            f"backend {self.name!r} answered 200 with no OpenAI response: {problem}",
            backend=self.name,
        )

    async def _refusal(self, response: httpx.Response, timeout_s: float) -> BackendError:
        try:
            async with asyncio.timeout(timeout_s):
                body = await read_body(response)
        except TRANSPORT_ERRORS:
            body = b""
        return error_from_response(self.name, response.status_code, response.headers, body)

    def _timed_out(self, timeout_s: float) -> BackendTimeoutError:
        return BackendTimeoutError(
            f"backend {self.name!r} did not answer within {timeout_s:g} s", backend=self.name
        )

    def _broken(self, why: str) -> BackendStreamError:
        return BackendStreamError(
            f"backend {self.name!r} broke off in the middle of its answer: {why}",
            backend=self.name,
        )

    async def _ask(
        self, method: str, path: str, content: bytes = b"", replica: "Replica | None" = None
    ) -> tuple[int, dict[str, Any]]:
        """A small question beside the API: status and JSON object ({} if the answer is none)."""
        status, body = await self._ask_raw(method, path, content, replica)
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = {}
        return status, answer if isinstance(answer, dict) else {}

    async def _ask_raw(
        self, method: str, path: str, content: bytes = b"", replica: "Replica | None" = None
    ) -> tuple[int, bytes]:
        """The same, with the answer as it came."""
        replica = replica or self._first_well()
        url = replica.root.copy_with(raw_path=path.encode())
        if path.startswith("/v1/"):
            url = httpx.URL(f"{replica.base}{path.removeprefix('/v1')}")
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                response = await replica.send(method, url, self._headers, content, _PROBE_TIMEOUT_S)
                try:
                    body = await read_body(response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise self._timed_out(_PROBE_TIMEOUT_S) from error
        except TRANSPORT_ERRORS as error:
            raise transport_error(self.name, error) from error
        return response.status_code, body

    def _first_well(self) -> "Replica":
        """Any replica that is well, for questions that all of them can answer."""
        order = self._set.in_order(_QUESTION, (), 0)
        return self._replicas[order[0]]

    async def _load_of(self, replica: "Replica") -> ServerMetrics | None:
        """What its /metrics say of its load; None: it has none, and is not asked again."""
        if replica.no_metrics:
            return None
        try:
            status, body = await self._ask_raw("GET", "/metrics", replica=replica)
        except BackendError:
            return None
        if status >= 500:
            replica.no_metrics = status == 501  # llama.cpp without --metrics
            return None
        metrics = ServerMetrics.parse(body.decode("utf-8", "replace")) if status == 200 else None
        replica.no_metrics = metrics is None or metrics.running is None
        return metrics

    async def _probe(self, replica: "Replica") -> BackendHealth:
        try:
            status, health = await self._ask("GET", "/health", replica=replica)
            if status == 200 and "model_revision" in health:
                return own_health(health)
            if status >= 500:
                return BackendHealth(ready=False, detail=why_unready(health, status))
            status, models = await self._ask("GET", "/v1/models", replica=replica)
        except BackendError as error:
            return BackendHealth(ready=False, detail=error.message)
        if status in (401, 403) or status >= 500:
            return BackendHealth(ready=False, detail=f"GET models answered {status}")
        return foreign_health(
            models,
            self.model,
            running=self.outstanding,
            capacity=self._max_concurrency,
            metrics=await self._load_of(replica),
        )


def _finishes(body: Mapping[str, Any]) -> bool:
    choices = body.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and bool(choice.get("finish_reason")) for choice in choices
    )


def _count(tokenizer: "Tokenizer", body: Mapping[str, Any]) -> int:
    """Tokens of a chat's or a completion's prompts."""
    if body.get("messages") is not None:
        return len(tokenizer.encode_chat(body["messages"], tools=body.get("tools")))
    prompt = body.get("prompt") or ""
    prompts = prompt if isinstance(prompt, list) else [prompt]
    ids = [tokenizer.encode(one) if isinstance(one, str) else one for one in prompts]
    return sum(len(one) if isinstance(one, list) else 1 for one in ids)
