"""Do costs estimated from outside agree with those that the engine itself measures?

Our engine poses as somebody else's server: it answers over HTTP, what it says of its own time is
taken out of every answer before the gateway sees it, and kept. The gateway shares the machine's
time as it does behind vLLM. Three teams of unequal mix send streams and whole answers through it;
after a warm-up each request's share is compared with what the engine measured, and each team's sum.
`--load cached`: the server has a prefix cache, and one of the teams asks about three long texts.
`--load silent`: so it has, but as vLLM is by default its answers do not say what was cached, only
the sum at its /metrics.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from msgspec.structs import replace

from backends.client.openai_http import OpenAIHTTPBackend
from backends.contract import BackendHealth, Chunk, Completion, GenerateRequest, Usage
from gateway.app import create_app
from gateway.settings import BackendSettings, CacheSettings, Settings
from gateway.settings.prices import MachineSettings
from tests.benchmarks.environment import describe, write

_WARM_UP = 60
_WORDS = ("rain", "bread", "music", "winter", "trains", "books", "two", "seven", "green")


class Team(NamedTuple):
    """What each of its two clients asks."""

    words: tuple[int, int]
    """Of a prompt."""
    tokens: tuple[int, int]
    """Of an answer."""
    streamed: bool
    shared_words: int = 0
    """Before the prompt: one of three texts."""


_PREFILL = Team((200, 500), (4, 12), streamed=True)
_DECODE = Team((5, 20), (60, 160), streamed=True)
_LOADS = {
    "mixed": {
        "prefill": _PREFILL,
        "decode": _DECODE,
        "mixed": Team((20, 120), (10, 60), streamed=False),
    },
    "cached": {
        "prefill": _PREFILL,
        "decode": _DECODE,
        "cached": Team((5, 60), (20, 60), streamed=True, shared_words=260),
    },
}
_LOADS["silent"] = _LOADS["cached"]
_CLIENTS = 2


class Plain:
    """A server like any other: its own measurements are kept here and not passed on."""

    def __init__(self, backend: OpenAIHTTPBackend, *, silent: bool) -> None:
        self.name = backend.name
        self.measured_ns: dict[str, int] = {}
        self._backend = backend
        self._silent = silent
        self._cached_tokens = 0

    def _stripped(self, request_id: str, body: dict[str, Any], usage: Usage | None) -> Usage | None:
        if usage is None or usage.headgate is None:
            return usage
        self.measured_ns[request_id] = usage.headgate.billable_ns
        body["usage"].pop("headgate", None)
        self._cached_tokens += usage.cached_tokens
        if self._silent:
            body["usage"].pop("prompt_tokens_details", None)
            usage = replace(usage, cached_tokens=0)
        return replace(usage, headgate=None)

    async def metrics_text(self) -> str:
        """What a silent server tells beside its answers."""
        return f"vllm:prefix_cache_hits_total {self._cached_tokens}\n" if self._silent else ""

    async def generate(self, request: GenerateRequest) -> Completion:
        """As the server answers."""
        done = await self._backend.generate(request)
        done.usage = self._stripped(request.request_id, done.body, done.usage)
        return done

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """As the server streams."""
        async for chunk in self._backend.stream(request):
            chunk.usage = self._stripped(request.request_id, chunk.body, chunk.usage)
            yield chunk

    async def probe(self) -> BackendHealth:
        """As the server is."""
        return await self._backend.probe()

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """As the server counts."""
        return await self._backend.count_tokens(body)

    async def usage_of(self, request_id: str) -> Usage | None:
        """Other people's servers do not know."""
        return None

    async def aclose(self) -> None:
        """Close connections."""
        await self._backend.aclose()


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words))


async def _client(
    http: httpx.AsyncClient,
    name_of_team: str,
    team: Team,
    number: int,
    requests: int,
    sent: dict[str, str],
) -> None:
    rng = random.Random(f"{name_of_team} {number}")
    shared = [_text(random.Random(text), team.shared_words) for text in range(3)]
    for turn in range(requests):
        text = _text(rng, rng.randint(*team.words))
        if team.shared_words:
            text = f"{rng.choice(shared)} {text}"
        body = {
            "model": "posing",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": rng.randint(*team.tokens),
            "ignore_eos": True,
            "stream": team.streamed,
        }
        name = f"{name_of_team}-{number}-{turn}"
        sent[name] = name_of_team
        response = await http.post(
            "/v1/chat/completions", json=body, headers={"x-request-id": name}
        )
        assert response.status_code == 200, response.text
        await asyncio.sleep(rng.random() * 0.3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def measure(url: str, folder: Path, load: str, requests: int) -> dict[str, Any]:
    """Send the teams' requests; compare."""
    backend = BackendSettings(
        name="posing", kind="openai", model="posing", machine="box", base_urls=[url]
    )
    settings = Settings(
        cache=CacheSettings(redis="memory"),
        machines=[MachineSettings(name="box", usd_per_hour=Decimal("3.60"))],
        backends=[backend],
        state_dir=str(folder),
    )
    posing = OpenAIHTTPBackend("posing", [url], model="posing")
    plain = Plain(posing, silent=load == "silent")
    app = create_app(settings, backends={"posing": plain})
    sent: dict[str, str] = {}
    async with app.lifespan():
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(
            transport=transport, base_url="http://gateway", timeout=300
        ) as http:
            await asyncio.gather(
                *(
                    _client(http, name, team, number, requests, sent)
                    for name, team in _LOADS[load].items()
                    for number in range(_CLIENTS)
                )
            )
        pipeline = app.state["pipeline"]
        await pipeline.parts.ledger.flush()
        found = {name: await pipeline.parts.ledger.find(name) for name in sent}
    estimated = {name: one.charges[0].machine_ns for name, one in found.items()}
    return _compared(list(sent.items())[_WARM_UP:], estimated, plain.measured_ns)


def _compared(
    sent: list[tuple[str, str]], estimated: dict[str, int], measured: dict[str, int]
) -> dict[str, Any]:
    """Errors by request and team; shares of each side's own sum, and as they are."""
    names = [name for name, _ in sent]
    whole = sum(estimated[name] for name in names), sum(measured[name] for name in names)
    errors = [abs(estimated[name] / measured[name] - 1) for name in names]
    shares = [abs(estimated[name] / whole[0] * whole[1] / measured[name] - 1) for name in names]
    teams = {}
    for team in dict.fromkeys(of for _, of in sent):
        own = [name for name, of in sent if of == team]
        sums = sum(estimated[name] for name in own), sum(measured[name] for name in own)
        teams[team] = {
            "requests": len(own),
            "estimated_s": round(sums[0] / 1e9, 3),
            "measured_s": round(sums[1] / 1e9, 3),
            "error": round(sums[0] / sums[1] - 1, 4),
            "share_error": round(sums[0] / whole[0] * whole[1] / sums[1] - 1, 4),
        }
    return {
        "requests": len(names),
        "estimated_over_measured": round(whole[0] / whole[1], 4),
        "request_error_median": round(statistics.median(errors), 4),
        "request_share_error_median": round(statistics.median(shares), 4),
        "teams": teams,
    }


def main() -> None:
    """Start a server, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled:small")
    parser.add_argument("--requests", type=int, default=100, help="Of each of the six clients.")
    parser.add_argument("--load", choices=[*_LOADS], help="One only.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    loads = [arguments.load] if arguments.load else [*_LOADS]
    results = [_served(arguments.model, load, arguments.requests) for load in loads]
    figures = describe(
        "three teams of unequal mix, six clients, our engine posing as a plain OpenAI server on a "
        "machine paid by the hour; the first 60 requests are not counted. cached: one team shares "
        "three long texts in the server's prefix cache; silent: likewise, but only /metrics says so"
    ) | {"model": arguments.model, "results": results}
    print(json.dumps(figures, indent=2))
    write(arguments.out, figures)


def _served(model: str, load: str, requests: int) -> dict[str, Any]:
    """One load on a fresh server."""
    port = _free_port()
    command = [sys.executable, "-P", "-m", "backends.server", "--model", model]
    command += ["--served-model-name", "posing", "--port", str(port), "--threads", "1"]
    command += ["--speculation-method", "off"]
    if load == "mixed":
        command += ["--no-enable-prefix-caching"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            server.stdout.readline()  # says where it listens
            url = f"http://127.0.0.1:{port}/v1"
            return {"load": load} | asyncio.run(measure(url, Path(folder), load, requests))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
