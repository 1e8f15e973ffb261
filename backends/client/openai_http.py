"""Any OpenAI-compatible server as a `Backend`: our own engine over a socket, or somebody else's.

Requests go straight to httpx's aiohttp transport: the client layer above it costs more CPU per
call than everything else here, and adds nothing that a fixed address needs.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import msgspec

from backends.client.breaker import BreakerSettings
from backends.client.http_replica import (
    TRANSPORT_ERRORS,
    never_connected,
    read_body,
    release,
    transport_cause,
)
from backends.client.openai_addresses import Addresses
from backends.client.openai_answers import read_chunks, read_completion
from backends.client.openai_errors import (
    broken_off,
    error_from_response,
    timed_out,
    transport_error,
)
from backends.client.replica_set import Place
from backends.contract import Chunk, Completion, GenerateRequest
from backends.errors import BackendError, BackendOverloadedError

if TYPE_CHECKING:
    from backends.tokenizer import Tokenizer

_SKIP_AFTER_REFUSAL_S = 1.0


class OpenAIHTTPBackend(Addresses):
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
        super().__init__(
            name,
            base_urls,
            model=model,
            api_key=api_key,
            uds=uds,
            max_concurrency=max_concurrency,
            breaker=breaker,
            tokenizer=tokenizer,
        )
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(max_concurrency) if max_concurrency else None

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
                raise timed_out(self.name, timeout_s) from error
            if response.status_code != 200:
                status, headers = response.status_code, response.headers
                raise error_from_response(self.name, status, headers, body)
            return read_completion(self.name, request.endpoint, body)

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
            async with contextlib.aclosing(read_chunks(self.name, response, timeout_s)) as chunks:
                async for chunk in chunks:
                    yield chunk

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
                failure: BackendError = timed_out(self.name, timeout_s)
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
            raise broken_off(self.name, repr(transport_cause(error))) from error

    async def _refusal(self, response: httpx.Response, timeout_s: float) -> BackendError:
        try:
            async with asyncio.timeout(timeout_s):
                body = await read_body(response)
        except TRANSPORT_ERRORS:
            body = b""
        return error_from_response(self.name, response.status_code, response.headers, body)
