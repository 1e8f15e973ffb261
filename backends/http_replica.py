"""One address of an OpenAI-compatible server: connections, prebuilt URLs, condition."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import httpx

from backends.breaker import Breaker, BreakerSettings
from backends.http1 import Http1Transport

CONNECT_TIMEOUT_S = 5.0
# Below uvicorn's 5 s: a reused connection must not be one that the server is just closing.
_KEEPALIVE_S = 4.0
_DRAIN_S = 0.1


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
        self._host = (b"host", self.root.netloc)
        self._transport = Http1Transport(
            self.root,
            uds=uds,
            tls=ssl.create_default_context() if self.root.scheme == "https" else None,
            keepalive_s=_KEEPALIVE_S,
        )

    async def send(
        self,
        method: str,
        url: httpx.URL,
        headers: list[tuple[bytes, bytes]],
        content: bytes,
        read_timeout_s: float,
    ) -> httpx.Response:
        """The head of the response; its body is still to be read. Raises httpx.TransportError."""
        request = httpx.Request(
            method,
            url,
            headers=[self._host, *headers, (b"content-length", b"%d" % len(content))],
            stream=httpx.ByteStream(content),
            extensions={
                "timeout": {
                    "connect": min(CONNECT_TIMEOUT_S, read_timeout_s),
                    "read": read_timeout_s,
                }
            },
        )
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._transport.aclose()


def never_connected(error: BaseException) -> bool:
    """Whether the connection was refused or not made in time."""
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


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
    with contextlib.suppress(httpx.HTTPError):
        await response.aclose()


async def drain(pieces: AsyncIterator[bytes]) -> None:
    """Read past [DONE] to the end of the body, so that the connection can be used again."""
    with contextlib.suppress(httpx.HTTPError):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in pieces:
                pass
