"""An OpenAI-compatible server that fails as it is told to."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

Fault = Literal["refuse", "hang", "slow", "cut", "500", "429", "429 long", "garbage"]
WORDS = ("one ", "two ", "three ")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
SLOW_S = 0.12


class ScriptedUpstream:
    """Answers three words.

    Attributes:
        fault: how the next requests fail; None: they do not. `refuse` closes the port.
        asked: requests that came.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.fault: Fault | None = None
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def set(self, fault: Fault | None) -> None:
        """Fail like that from now on."""
        self.fault = fault
        if fault == "refuse":
            await self.close()
        elif self._server is None:
            await self.open()

    async def open(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse connections; those that are there break."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        self._writers.discard(writer)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection stays."""
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            body = b'{"data": [{"id": "m"}]}'
            writer.write(_http("404 Not Found" if b"/metrics" in head else "200 OK", body))
            return True
        lines = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if line)
        body = await reader.readexactly(int(lines[b"content-length"]))
        self.asked += 1
        stream = bool(json.loads(body).get("stream"))
        if self.fault == "hang":
            await reader.read()
            return False
        if self.fault == "slow":
            await asyncio.sleep(SLOW_S)
        if self.fault in ("500", "429", "429 long"):
            after = {"429": b"0.05", "429 long": b"60"}.get(self.fault)
            extra = b"Retry-After: " + after + b"\r\n" if after else b""
            status = "500 Oops" if self.fault == "500" else "429 Too Many Requests"
            writer.write(_http(status, b'{"error": {"message": "scripted"}}', extra))
            return True
        writer.write(self._stream() if stream else self._whole())
        await writer.drain()
        return not stream and self.fault is None

    def _whole(self) -> bytes:
        if self.fault == "garbage":
            return _http("200 OK", b"<html>It works!</html>")
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = _http("200 OK", json.dumps(_body(choice) | {"usage": USAGE}).encode())
        return whole[:-20] if self.fault == "cut" else whole

    def _stream(self) -> bytes:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        if self.fault == "garbage":
            return head + b"data: {nonsense\n\ndata: [DONE]\n\n"
        words = [_event(_body({"index": 0, "delta": {"content": word}})) for word in WORDS]
        if self.fault == "cut":
            return head + b"".join(words[:2])
        end = _event(_body({"index": 0, "delta": {}, "finish_reason": "stop"}))
        usage = _event({**_body(None), "usage": USAGE})
        return head + b"".join(words) + end + usage + b"data: [DONE]\n\n"


def _body(choice: dict[str, Any] | None) -> dict[str, Any]:
    return {"id": "up", "model": "m", "created": 1, "choices": [choice] if choice else []}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _http(status: str, body: bytes, extra: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n".encode()
    return head + extra + b"\r\n" + body


@contextlib.asynccontextmanager
async def scripted_upstream() -> AsyncIterator[ScriptedUpstream]:
    """A running one."""
    upstream = ScriptedUpstream()
    await upstream.open()
    try:
        yield upstream
    finally:
        await upstream.close()
