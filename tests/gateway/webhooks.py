"""The other end of a webhook: on the test's event loop, or in a thread beside it."""

import asyncio
import contextlib
import http.server
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec


class Hook:
    """An HTTP server that takes messages, or refuses the first few."""

    def __init__(self) -> None:
        self.url = ""
        self.refuse = 0
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(body) for body in self.bodies]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head)}
        body = await reader.readexactly(int(headers["content-length"]))
        status = "503 Busy" if self.refuse else "204 No Content"
        if self.refuse:
            self.refuse -= 1
        else:
            self.bodies.append(body)
            self.headers.append(headers)
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def hooked(path: str = "hook") -> AsyncIterator[Hook]:
    """On a free port."""
    made = Hook()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/{path}"
    yield made
    server.close()


class Receiver(http.server.ThreadingHTTPServer):
    """Takes messages in threads, for senders that are other processes or block the loop."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.messages: list[dict[str, Any]] = []
        self.before_answer: Callable[[], None] = lambda: None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A killed sender does not take its answer: nothing to print."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.messages.append(msgspec.json.decode(body))
        self.server.before_answer()
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """On a free port."""
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
