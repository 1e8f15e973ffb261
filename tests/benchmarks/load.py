"""A closed-loop HTTP load generator that costs little: raw protocols, prepared requests."""

import asyncio
import hashlib
import random
import time
from collections.abc import Sequence
from typing import cast

import msgspec
import uvloop

WORDS = (
    "time person year way day thing man world life hand part child eye woman place work week case "
    "point government company number group problem fact be have do say get make go know take see "
    "come think look want give use find tell ask seem feel try leave call good new first last long "
    "great little own other old right big high different small large next early young important "
    "few public bad same able"
).split()

API_KEY = "sk-" + hashlib.sha256(b"benchmark").hexdigest()
"""LiteLLM's proxy does not start without a key; our gateway, open on loopback, ignores it."""


class Outcome(msgspec.Struct, kw_only=True):
    """What a run measured."""

    requests: int
    errors: int
    """Answers whose status is not 200."""
    seconds: float
    latencies_s: list[float]
    """Sorted."""

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Latency in milliseconds below which `share` of the requests were."""
        place = min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))
        return self.latencies_s[place] * 1e3


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the last one is answered."""

    def __init__(self, run: "_Run") -> None:
        self._run = run
        self._began = 0.0
        self._missing = -1
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = cast("asyncio.Transport", transport)  # uvloop has its own class
        self._send()

    def connection_lost(self, _error: Exception | None) -> None:
        self._run.closed()

    def _send(self) -> None:
        payload = self._run.next_request()
        if payload is None:
            self._transport.close()
            return
        self._missing, self._head = -1, b""
        self._began = time.perf_counter()
        self._transport.write(payload)

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            lower = self._head[:end].lower()
            place = lower.find(b"content-length:")
            if place < 0:
                raise RuntimeError(f"an answer without content-length: {self._head[:300]!r}")
            length = int(lower[place + 15 :].split(b"\r\n", 1)[0])
            self._missing = length - (len(self._head) - end - 4)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            ok = self._head.startswith(b"HTTP/1.1 200")
            self._run.done(time.perf_counter() - self._began, ok, self._head)
            self._send()


class _Run:
    def __init__(self, requests: Sequence[bytes], count: int, connections: int) -> None:
        self._requests = requests
        self._count = count
        self._sent = 0
        self._open = connections
        self.latencies: list[float] = []
        self.errors = 0
        self.first_error = b""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next_request(self) -> bytes | None:
        if self._sent >= self._count:
            return None
        self._sent += 1
        return self._requests[(self._sent - 1) % len(self._requests)]

    def done(self, seconds: float, ok: bool, answer: bytes) -> None:
        self.latencies.append(seconds)
        if not ok:
            self.errors += 1
            self.first_error = self.first_error or answer[:800]

    def closed(self) -> None:
        self._open -= 1
        if self._open == 0 and not self.finished.done():
            self.finished.set_result(None)


def run_load(port: int, requests: Sequence[bytes], *, count: int, connections: int) -> Outcome:
    """Send `count` requests over `connections` keep-alive connections to 127.0.0.1:port.

    Raises:
        RuntimeError: the server closed connections before all were answered.
    """

    async def go() -> Outcome:
        loop = asyncio.get_running_loop()
        run = _Run(requests, count, connections)
        began = time.perf_counter()
        for _ in range(connections):
            await loop.create_connection(lambda: _Connection(run), "127.0.0.1", port)
        await run.finished
        seconds = time.perf_counter() - began
        if len(run.latencies) != count:
            raise RuntimeError(f"{len(run.latencies)} of {count} requests were answered")
        if run.errors:
            print(f"{run.errors} errors, the first: {run.first_error!r}", flush=True)
        return Outcome(
            requests=count,
            errors=run.errors,
            seconds=seconds,
            latencies_s=sorted(run.latencies),
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(go())


def chat_requests(
    count: int, *, model: str, seed: int, temperature: float | None = None
) -> list[bytes]:
    """`count` chat requests, every prompt different, of about 50 to 500 tokens, as whole requests.

    A word of this list is 1.3 tokens in the common vocabularies.
    """
    draw = random.Random(seed)
    made = []
    for number in range(count):
        words = draw.choices(WORDS, k=round(draw.randint(50, 500) / 1.3))
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": f"{seed}-{number}: {' '.join(words)}?"}],
        }
        if temperature is not None:
            body["temperature"] = temperature
        made.append(post("/v1/chat/completions", msgspec.json.encode(body)))
    return made


def post(path: str, body: bytes) -> bytes:
    """A POST as bytes."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {API_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
