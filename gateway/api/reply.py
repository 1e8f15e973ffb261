"""The ASGI side of a hot path: read the body, notice that the client left, send bytes."""

import asyncio
from typing import Any

from litestar.types import Receive, Scope, Send

from gateway.api.encodings import unpacked
from gateway.errors import RequestTooLarge

WATCH_AFTER_S = 0.02
_MOST_DISCARDED = 8 << 20

RawHeaders = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


def header_map(scope: Scope) -> dict[str, str]:
    """The request's headers by lower-case name; of repeated ones the last."""
    return {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}


class Reply:
    """One HTTP exchange. `started` says whether the status line has gone out."""

    __slots__ = ("_receive", "_send", "_unread", "disconnected", "started")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._unread = True
        self.started = False
        self.disconnected = False

    async def read(self, max_bytes: int, encoding: str | None = None) -> bytes:
        """The whole request body.

        Args:
            encoding: of it, as its header says; None: none.

        Raises:
            RequestTooLarge: more than `max_bytes`.
            InvalidRequest: it is not encoded so, or so that we do not read it.
            ClientGone: the connection closed before the end.
        """
        body = await self._read(max_bytes)
        return body if encoding is None else unpacked(body, encoding, max_bytes)

    async def _read(self, max_bytes: int) -> bytes:
        self._unread = False
        message: Any = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
            return body
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_bytes:
                raise _too_large(max_bytes)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self._receive()

    async def _discard(self) -> None:
        """Take what the client still sends: a connection that is closed amid a body loses the
        answer, or the client's next request. Who sends very much loses it all the same."""
        left, more = _MOST_DISCARDED, True
        while more and left > 0:
            message: Any = await self._receive()
            more = message.get("more_body", False)
            left -= len(message.get("body", b""))

    def watching(self) -> "Watch":
        """While inside, the current task is cancelled when the client disconnects."""
        return Watch(self)

    async def watch(self, task: asyncio.Task[Any]) -> None:
        """Wait for the disconnect, then cancel `task`."""
        message: Any = {}
        while message.get("type") != "http.disconnect":
            message = await self._receive()
        self.disconnected = True
        task.cancel()

    async def whole(self, status: int, headers: RawHeaders, body: bytes, kind: bytes) -> None:
        """Send a complete response."""
        if self._unread:
            await self._discard()
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def start_stream(self, headers: RawHeaders) -> None:
        """Send the head of an event stream."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *headers,
        ]
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, data: bytes, *, last: bool = False) -> None:
        """Send encoded events; `last` ends the response."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})


class Watch:
    """Looks out for a disconnect, from WATCH_AFTER_S on: faster answers need no look-out."""

    __slots__ = ("_reply", "_timer", "_watcher")

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin, task)

    def __exit__(self, *_error: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self, task: asyncio.Task[Any]) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._reply.watch(task))


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {max_bytes} bytes.")
