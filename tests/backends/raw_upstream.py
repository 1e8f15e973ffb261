"""An HTTP server that sends exactly the bytes it is told to: for what no sane server does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path


class RawUpstream:
    """Answers every request with `pieces`, written one by one.

    Attributes:
        requests: the raw requests received.
        asked: set when a request has come.
        closed: set when a client has closed its connection.
    """

    def __init__(self, pieces: Sequence[bytes], *, hold_open: bool = False) -> None:
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()
        self.connections = 0
        self.url = ""
        self.by_path: list[tuple[bytes, bytes]] = []
        """(path, whole response) that differ from `pieces`."""
        self.stale: bytes | None = None
        """What a connection that has answered gets for its next request, before it closes without
        a word; None: it goes on answering."""
        self._pieces = pieces
        self._hold_open = hold_open

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, any number of requests."""
        self.connections += 1
        answered = False
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.requests.append(head + await reader.readexactly(length))
                self.asked.set()
                if answered and self.stale is not None:
                    writer.write(self.stale)
                    break
                answered = True
                path = head.split(b" ", 2)[1]
                other = [answer for of, answer in self.by_path if of == path]
                for piece in other or self._pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self._hold_open:
                    await reader.read()
                    break
                if b"content-length" not in b"".join(self._pieces).lower():
                    break
        self.closed.set()
        writer.close()


@contextlib.asynccontextmanager
async def raw_upstream(
    *pieces: bytes, hold_open: bool = False, uds: Path | None = None
) -> AsyncIterator[RawUpstream]:
    """A running `RawUpstream`."""
    upstream = RawUpstream(pieces, hold_open=hold_open)
    if uds is not None:
        server = await asyncio.start_unix_server(upstream.handle, str(uds))
    else:
        server = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        upstream.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield upstream
    finally:
        server.close()


def http(status: str, body: bytes, *headers: str) -> bytes:
    """A whole HTTP response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
