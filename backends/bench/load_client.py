"""A load of streamed completions, and when each token came: raw HTTP/1.1, so that it costs little.

Prompts are random token ids, all different, and answers have exactly the wanted length, so any
server of OpenAI's /v1/completions (ours, vLLM's) does the same work whatever its weights say.
"""

import asyncio
import random
import ssl
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from backends.bench.traces import TraceRequest

_EVENT: Final = b"data: {"
_END: Final = b"\r\n0\r\n\r\n"
_TAIL: Final = len(_EVENT) - 1
_FIRST_ID, _LAST_ID = 100, 4000
"""Of token ids: any vocabulary has these."""


class Answered(Struct):
    """One request, and the moments at which something of its answer came; seconds of the run."""

    prompt_tokens: int
    output_tokens: int
    sent_s: float
    times_s: "array[float]"
    """Of each piece of the answer: a token or, where steps were taken in a row, several."""
    problem: str = ""


class Server(Struct, frozen=True, kw_only=True):
    """Whom to ask."""

    base_url: str
    """With /v1."""
    model: str
    api_key: str | None = None

    def payload(self, request: TraceRequest, draw: random.Random) -> bytes:
        """One request as bytes."""
        parts = urlsplit(self.base_url)
        body = msgspec.json.encode(
            {
                "model": self.model,
                "prompt": draw.choices(range(_FIRST_ID, _LAST_ID), k=request.prompt_tokens),
                "max_tokens": request.output_tokens,
                "ignore_eos": True,
                "temperature": 0.0,
                "stream": True,
            }
        )
        key = f"authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        head = (
            f"POST {parts.path.rstrip('/')}/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            f"content-type: application/json\r\n{key}content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, ended: Callable[["_Connection"], None], began: float) -> None:
        self._ended = ended
        self._began = began
        self._answer: Answered | None = None
        self._tail = b""
        self._head = b""
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has its own class

    def send(self, answer: Answered, payload: bytes) -> None:
        self._answer, self._tail, self._head = answer, b"", b""
        answer.sent_s = time.perf_counter() - self._began
        self._transport.write(payload)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter() - self._began
        answer = self._answer
        if answer is None:
            return
        if len(self._head) < 12:
            self._head = (self._head + data)[:12]
            if len(self._head) == 12 and self._head[9:] != b"200":
                answer.problem = data[:400].decode(errors="replace")
                self._transport.close()
                return
        data = self._tail + data
        for _ in range(data.count(_EVENT)):
            answer.times_s.append(now)
        self._tail = data[-_TAIL:]
        if data.endswith(_END):
            self._over()

    def connection_lost(self, _error: Exception | None) -> None:
        self.open = False
        if self._answer is not None:
            self._answer.problem = self._answer.problem or "the server closed the connection"
            self._over()

    def close(self) -> None:
        self._transport.close()

    def _over(self) -> None:
        self._answer = None
        self._ended(self)


class _Run:
    """Keeps a load going; every connection that is free is used again."""

    def __init__(self, server: Server, seed: int | None, on_free: Callable[[], None]) -> None:
        self._server = server
        self._draw = random.Random(seed)
        self._free: list[_Connection] = []
        self._on_free = on_free
        self.began = time.perf_counter()
        self.answers: list[Answered] = []
        self.active = 0
        self.idle = asyncio.Event()

    async def send(self, request: TraceRequest) -> None:
        payload = self._server.payload(request, self._draw)
        answer = Answered(request.prompt_tokens, request.output_tokens, 0.0, array("d"))
        self.answers.append(answer)
        self.active += 1
        self.idle.clear()
        connection = self._free.pop() if self._free else await self._connect()
        connection.send(answer, payload)

    async def _connect(self) -> _Connection:
        parts = urlsplit(self._server.base_url)
        secure = parts.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._ended, self.began),
            parts.hostname or "127.0.0.1",
            parts.port or (443 if secure else 80),
            ssl=ssl.create_default_context() if secure else None,
        )
        return connection

    def _ended(self, connection: _Connection) -> None:
        if connection.open:
            self._free.append(connection)
        self.active -= 1
        if self.active == 0:
            self.idle.set()
        self._on_free()

    def close(self) -> None:
        for connection in self._free:
            connection.close()


async def run_paced(
    server: Server, load: Sequence[TraceRequest], *, seed: int | None = None, limit_s: float = 600.0
) -> list[Answered]:
    """Send each request at its moment, and wait for all answers.

    Args:
        seed: of the prompts; None: others every time, so that no prefix cache knows them.
    """
    run = _Run(server, seed, lambda: None)
    sending = set()
    for request in load:
        await asyncio.sleep(max(0.0, request.at_s - (time.perf_counter() - run.began)))
        task = asyncio.ensure_future(run.send(request))
        sending.add(task)
        task.add_done_callback(sending.discard)
    await asyncio.gather(*sending)
    await asyncio.wait_for(run.idle.wait(), limit_s)
    run.close()
    return run.answers


async def run_concurrent(
    server: Server,
    load: Sequence[TraceRequest],
    concurrency: int,
    seconds: float,
    *,
    seed: int | None = None,
    limit_s: float = 600.0,
) -> list[Answered]:
    """So many requests at once, the next as soon as one ends, for so long; then wait for the rest.

    Args:
        load: taken in order, from the start again when it is through.
        seed: of the prompts; None: others every time, so that no prefix cache knows them.
    """
    free = asyncio.Semaphore(concurrency)
    run = _Run(server, seed, free.release)
    sent = 0
    while True:
        await free.acquire()
        if time.perf_counter() - run.began >= seconds:
            break
        await run.send(load[sent % len(load)])
        sent += 1
    await asyncio.wait_for(run.idle.wait(), limit_s)
    run.close()
    return run.answers
