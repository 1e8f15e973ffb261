"""What budgets, rate limits and the ledger add to a request: with all of them, and without any.

Two workers in turns before the same stub: one with a budget, a key limited in requests, tokens,
dollars and concurrency in a real Redis, and the ledger; one with none of them. Every prompt is
different. CPU seconds count beside wall time, because machines are busy.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from gateway.cache.server import redis_command
from gateway.ledger.budget_store import Budget, set_budget
from gateway.ledger.database import open_engine
from gateway.ledger.key_store import NewKey, create_key
from gateway.limits.model import RateLimits
from gateway.processes.runtime import RUNTIME_ENV, Address, Runtime
from gateway.settings import BackendSettings, CacheSettings, PriceSettings, ServerSettings, Settings
from migrations import upgrade
from tests.benchmarks.bench_gateway import STUB, Server, free_port, running
from tests.benchmarks.environment import describe, write
from tests.benchmarks.load import API_KEY, Outcome, chat_requests, run_load

CONNECTIONS = 16
_WIDE = RateLimits(
    requests_per_minute=10**8,
    tokens_per_minute=10**11,
    concurrent_requests=10**4,
    nano_usd_per_minute=10**14,
)


def main() -> int:
    """Measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="Per round and side.")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stub_port = free_port()
        stub = Server("stub", [sys.executable, str(STUB), str(stub_port)], {}, folder / "stub.log")
        stub.port = stub_port
        redis_socket = folder / "redis.sock"
        redis = Server("redis", redis_command(redis_socket, folder, 1 << 28), {}, folder / "r.log")
        with running(stub, redis):
            stub.wait("/v1/models", 20)
            sides = {}
            for side, module in (
                ("with", "gateway.processes.worker"),
                ("without", "tests.benchmarks.worker_without_ledger"),
            ):
                (folder / side).mkdir()
                url = f"unix://{redis_socket}"
                sides[side] = _start(folder / side, stub_port, url, module, limited=side == "with")
            with running(*(server for server, _ in sides.values())):
                found = {side: _Figures() for side in sides}
                for number in range(asked.rounds):
                    for side, (server, secret) in sides.items():
                        found[side].round(server, secret, number, asked.requests)
    figures = {
        **describe(f"{asked.rounds} rounds in turns, {asked.requests} different prompts each"),
        "results": {side: figure.shown() for side, figure in found.items()},
        "added_p50_ms": round(found["with"].p50_ms - found["without"].p50_ms, 3),
        "added_cpu_ms": round(found["with"].cpu_ms - found["without"].cpu_ms, 3),
        "throughput_share": round(found["with"].rate / found["without"].rate, 3),
        "throughput_per_cpu_share": round(found["without"].cpu_ms / found["with"].cpu_ms, 3),
    }
    print(figures)
    write(asked.out, figures)
    return 0


class _Figures:
    """One side's rounds; medians are shown."""

    def __init__(self) -> None:
        self._p50_ms: list[float] = []
        self._rates: list[float] = []
        self._cpu_ms: list[float] = []

    def round(self, server: Server, secret: str | None, number: int, count: int) -> None:
        """One connection for latency, many for throughput."""
        calm = _run(server, secret, seed=2 * number, count=count // 4, connections=1)
        before = server.cpu_s()
        busy = _run(server, secret, seed=2 * number + 1, count=count, connections=CONNECTIONS)
        self._cpu_ms.append((server.cpu_s() - before) / count * 1e3)
        self._p50_ms.append(calm.percentile_ms(0.5))
        self._rates.append(busy.requests_per_s)

    @property
    def p50_ms(self) -> float:
        return statistics.median(self._p50_ms)

    @property
    def rate(self) -> float:
        return statistics.median(self._rates)

    @property
    def cpu_ms(self) -> float:
        return statistics.median(self._cpu_ms)

    def shown(self) -> dict[str, Any]:
        """Medians, and all rounds."""
        return {
            "p50_ms": round(self.p50_ms, 3),
            "requests_per_s": round(self.rate, 1),
            "cpu_ms_per_request": round(self.cpu_ms, 3),
            "rounds_p50_ms": [round(one, 3) for one in self._p50_ms],
            "rounds_requests_per_s": [round(one, 1) for one in self._rates],
        }


def _run(server: Server, secret: str | None, *, seed: int, count: int, connections: int) -> Outcome:
    requests = chat_requests(count, model="auto", seed=seed)
    if secret is not None:
        requests = [one.replace(API_KEY.encode(), secret.encode()) for one in requests]
    found = run_load(server.port, requests, count=count, connections=connections)
    if found.errors:
        raise RuntimeError(f"{found.errors} requests of {server.name} failed")
    return found


def _start(
    folder: Path, stub_port: int, redis_url: str, module: str, *, limited: bool
) -> tuple[Server, str | None]:
    """A worker; and the limited key's secret, where there is one."""
    url = f"http://127.0.0.1:{stub_port}/v1"
    price = PriceSettings(input_usd_per_mtok=Decimal("0.15"), output_usd_per_mtok=Decimal("0.60"))
    settings = Settings(
        state_dir=str(folder),
        server=ServerSettings(port=free_port()),
        cache=CacheSettings(redis=redis_url),
        backends=[
            BackendSettings(name="stub", kind="openai", model="stub", base_urls=[url], price=price)
        ],
    )
    database = f"sqlite+aiosqlite:///{folder / 'headgate.db'}"
    upgrade(database)
    secret = asyncio.run(_limit(database)) if limited else None
    runtime = Runtime(
        settings=settings,
        addresses={"stub": Address(base_urls=(url,))},
        redis_url=redis_url,
        database_url=database,
        state_dir=str(folder),
        run_dir=str(folder),
        started_at=time.time(),
    )
    runtime.save(folder / "runtime.json")
    server = Server(
        module,
        [sys.executable, "-m", module],
        {RUNTIME_ENV: str(folder / "runtime.json")},
        folder / "log",
    )
    server.port = settings.server.port
    server.wait("/health/ready", 60)
    return server, secret


async def _limit(database: str) -> str:
    """A hard budget and a limited key, too wide to be reached."""
    engine = open_engine(database)
    async with engine.begin() as connection:
        budget = Budget(scope="team:bench", window="day", limit_nano_usd=10**15)
        await set_budget(connection, budget, now=time.time())
        wanted = NewKey(team="bench", limits=_WIDE)
        _, secret = await create_key(connection, wanted, now=time.time())
    await engine.dispose()
    return secret


if __name__ == "__main__":
    sys.exit(main())
