"""One address of an OpenAI-compatible server: connections, prebuilt URLs, condition."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from backends.client.breaker import Breaker, BreakerSettings
from backends.client.connectors import TCPConnector, UnixConnector, connection_made

CONNECT_TIMEOUT_S = 5.0
# Below uvicorn's 5 s: a reused connection must not be one that the server is just closing.
_KEEPALIVE_S = 4.0
_DRAIN_S = 0.1
_STALE_WITHIN_S = 1.0
"""A connection that its server had closed fails within a round trip; what breaks later was at
work on the request, and asking again is for the caller to decide."""
TRANSPORT_ERRORS = (httpx.HTTPError, aiohttp.ClientError, OSError)
"""What a broken connection raises, `TimeoutError` among them."""


class Replica:
    """One address: its transport, prebuilt URLs and condition."""

    def __init__(
        self, base_url: str, uds: str | None, breaker: BreakerSettings | None = None
    ) -> None:
        self.base = base_url.rstrip("/")
        self.root = httpx.URL(self.base.removesuffix("/v1") or "/")
        self.urls = {
            endpoint: httpx.URL(f"{self.base}/{endpoint}")
            for endpoint in ("chat/completions", "completions", "embeddings")
        }
        self.address = uds or self.base
        """What it is called, here and by other gateways."""
        self.breaker = Breaker(breaker or BreakerSettings())
        self.failing = 0.0
        """Share of its latest answers that failed, smoothed."""
        self.ready = True
        """By its last probe."""
        self.skip_until = 0.0
        self.cool_until = 0.0
        """It said 429, and when to come back."""
        self.no_metrics = False
        """It has no /metrics, or they say nothing of its load."""
        context = (
            ssl.create_default_context()
            if self.base.startswith("https")
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )

        def session(*, keep: bool = True) -> aiohttp.ClientSession:
            lasting = {"keepalive_timeout": _KEEPALIVE_S} if keep else {"force_close": True}
            connector: aiohttp.BaseConnector
            if uds is not None:
                connector = UnixConnector(uds, limit=0, **lasting)
            else:
                connector = TCPConnector(ssl=context, limit=0, **lasting)
            # One caller's cookies are not the next one's.
            return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

        self._kept = AiohttpTransport(verify=context, client=session)
        self._fresh = AiohttpTransport(verify=context, client=lambda: session(keep=False))
        """Makes a connection for each request."""

    async def send(
        self,
        method: str,
        url: httpx.URL,
        headers: list[tuple[bytes, bytes]],
        content: bytes,
        read_timeout_s: float,
    ) -> httpx.Response:
        """The head of the response; its body is still to be read.

        A kept connection that turns out to be closed gets the request one new connection.
        """
        request = httpx.Request(
            method,
            url,
            headers=headers,
            stream=httpx.ByteStream(content),  # `content` would find headers that aiohttp writes
            extensions={
                "timeout": {
                    "connect": min(CONNECT_TIMEOUT_S, read_timeout_s),
                    "read": read_timeout_s,
                }
            },
        )
        request.read()
        connection_made.set(False)
        began = time.monotonic()
        try:
            return await self._kept.handle_async_request(request)
        except TRANSPORT_ERRORS as error:
            late = time.monotonic() - began > _STALE_WITHIN_S
            if connection_made.get() or late or not _closed_unread(error):
                raise
        return await self._fresh.handle_async_request(request)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._kept.aclose()
        await self._fresh.aclose()


def transport_cause(error: BaseException) -> BaseException:
    """What really happened: the transport calls every lost connection a connect timeout."""
    if isinstance(error, httpx.HTTPError) and error.__cause__ is not None:
        return error.__cause__
    return error


def never_connected(error: BaseException) -> bool:
    """Whether the connection was refused or not made in time."""
    return isinstance(
        transport_cause(error), aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
    )


def _closed_unread(error: BaseException) -> bool:
    """Whether the connection was lost before any of the response had come."""
    cause = transport_cause(error)
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return isinstance(cause.message, str)  # else the head that had begun
    return isinstance(cause, aiohttp.ClientOSError | ConnectionError)


def body_pieces(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes in, decompressed where a server compresses unasked."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return cast(AsyncGenerator[bytes, None], response.aiter_bytes())
    # Straight from the transport: httpx's own iterator costs more than the JSON inside.
    return cast(AsyncGenerator[bytes, None], aiter(cast(httpx.AsyncByteStream, response.stream)))


async def read_body(response: httpx.Response) -> bytes:
    """The whole body."""
    return b"".join([piece async for piece in body_pieces(response)])


async def release(response: httpx.Response) -> None:
    """Give the connection back, or close it where the answer was not read to its end."""
    with contextlib.suppress(*TRANSPORT_ERRORS):
        await response.aclose()


async def drain(pieces: AsyncIterator[bytes]) -> None:
    """Read past [DONE] to the end of the body, so that the connection can be used again."""
    with contextlib.suppress(*TRANSPORT_ERRORS):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in pieces:
                pass
