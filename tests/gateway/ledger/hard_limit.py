"""Several gateway processes under one small hard budget, many clients, one kill -9 in the middle.

Real processes, real HTTP, a real database. Half the answers come from a server with prices, half
from one that reports machine time as our engine does; some are streams, some are cut off.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.budget_store import Budget, counter_of, read_spend, set_budget
from gateway.ledger.database import open_engine
from gateway.ledger.tables import charges, leases
from gateway.processes.runtime import RUNTIME_ENV, Address, Runtime
from gateway.settings import (
    BackendSettings,
    CacheSettings,
    ExactSettings,
    MachineSettings,
    PriceSettings,
    RoutingSettings,
    ServerSettings,
    Settings,
)

PROCESSES = 4
CLIENTS = 64
LIMIT_NANO_USD = 40_000_000
"""What four processes and 64 clients leave over at the end is up to 1.1 million of any limit."""
_WHOLE, _STREAM = 0.6, 0.9
"""Shares of requests, cumulative; the rest are streams that are cut off."""
_START_S = 600.0
"""Machines are busy."""
_SETTLE_S = 60.0
_POLICY = """
[default]
split = { priced = 0.5, timed = 0.5 }
fallbacks = ["priced", "timed"]
"""


class Gateways:
    """Gateway processes that share a state folder and a database, and what they ask."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._folder = folder
        self._database_url = database_url
        self._ports = [_free_port() for _ in range(PROCESSES + 2)]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * PROCESSES
        self._upstreams = [
            self._upstream(port, *options)
            for port, options in zip(
                self._ports[PROCESSES:],
                ((), ("--ns-per-token", "1000000", "--model", "timed")),
                strict=True,
            )
        ]
        (folder / "policies").mkdir()
        (folder / "policies" / "halves.toml").write_text(_POLICY)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._ports[:PROCESSES]]

    def start(self, index: int) -> None:
        """Start one gateway process."""
        run_dir = self._folder / f"run{index}"
        run_dir.mkdir(exist_ok=True)
        settings = self._settings(self._ports[index])
        names = [backend.name for backend in settings.backends]
        runtime = Runtime(
            settings=settings,
            addresses={
                name: Address(base_urls=(f"http://127.0.0.1:{port}/v1",))
                for name, port in zip(names, self._ports[PROCESSES:], strict=True)
            },
            redis_url=None,
            database_url=self._database_url,
            state_dir=str(self._folder / "state"),
            run_dir=str(run_dir),
            started_at=time.time(),
        )
        runtime.save(run_dir / "runtime.json")
        self._processes[index] = subprocess.Popen(
            [sys.executable, "-m", "gateway.processes.worker"],
            env={**os.environ, RUNTIME_ENV: str(run_dir / "runtime.json")},
            stdout=(run_dir / "log").open("ab"),
            stderr=subprocess.STDOUT,
        )

    def kill(self, index: int) -> int:
        """kill -9; the pid that was."""
        process = self._processes[index]
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        return process.pid

    def stop(self) -> None:
        """SIGTERM all, and wait."""
        running = [*self._upstreams, *(p for p in self._processes if p is not None)]
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _settings(self, port: int) -> Settings:
        price = PriceSettings(output_usd_per_mtok=Decimal(1))
        urls = ["http://x/v1"]
        return Settings(
            state_dir=str(self._folder / "state"),
            server=ServerSettings(port=port),
            cache=CacheSettings(redis="memory", exact=ExactSettings(enabled=False)),
            routing=RoutingSettings(policy="halves", policy_dirs=[str(self._folder / "policies")]),
            machines=[MachineSettings(name="local", usd_per_hour=Decimal("3.6"))],
            backends=[
                BackendSettings(
                    name="priced", kind="openai", model="echo", base_urls=urls, price=price
                ),
                BackendSettings(name="timed", kind="engine", model="echo"),
            ],
            log_level="warning",
        )

    def _upstream(self, port: int, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "backends.echo", "--port", str(port)]
        command += ["--token-delay-s", "0.003", *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Load:
    """Clients that go on until the budget is spent."""

    def __init__(self, urls: list[str], seed: int) -> None:
        self._urls = urls
        self._draw = random.Random(seed)
        self.answered = 0
        self.refused_for_now = 0
        self.lost = 0
        """Requests whose gateway was killed, or that found nobody."""
        self.final_refusals = 0

    async def run(self) -> None:
        """Until every client was refused for good."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=20.0, limits=limits) as client:
            await asyncio.gather(*(self._client(client, number) for number in range(CLIENTS)))

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        sent = 0
        while True:
            sent += 1
            draw = self._draw.random()
            words = " ".join(f"w{number}-{sent}-{n}" for n in range(self._draw.randint(4, 48)))
            body = {
                "model": "auto",
                "max_tokens": 48,
                "stream": draw >= _WHOLE,
                "user": f"u{number}-{sent}",
                "messages": [{"role": "user", "content": words}],
            }
            url = self._draw.choice(self._urls) + "/v1/chat/completions"
            try:
                code = await self._ask(client, url, body, cut=draw >= _STREAM)
            except httpx.HTTPError:
                self.lost += 1
                await asyncio.sleep(0.1)
                continue
            if code == "insufficient_quota":
                self.final_refusals += 1
                return
            if code is None:
                self.answered += 1
            else:
                self.refused_for_now += 1
                await asyncio.sleep(0.2)

    async def _ask(
        self, client: httpx.AsyncClient, url: str, body: dict[str, Any], *, cut: bool
    ) -> str | None:
        """The error's code; None: it was answered, or cut off on purpose."""
        async with client.stream("POST", url, json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return str(answer.json()["error"]["code"])
            async for _ in answer.aiter_bytes():
                if cut:
                    return None
        return None


async def run(
    folder: Path, database_url: str, *, seed: int, limit_nano_usd: int = LIMIT_NANO_USD
) -> dict[str, Any]:
    """One run: what was spent, charged, overrun, and how long the killed one's lease stayed."""
    engine = open_engine(database_url)
    budget = Budget(scope="global", window="lifetime", limit_nano_usd=limit_nano_usd)
    async with engine.begin() as connection:
        await set_budget(connection, budget, now=time.time())
    gateways = await asyncio.to_thread(Gateways, folder, database_url)
    try:
        for index in range(PROCESSES):
            gateways.start(index)
        await _ready(gateways.urls)
        load = Load(gateways.urls, seed)
        began = time.monotonic()
        recovered = asyncio.create_task(_kill_one(gateways, folder, engine, budget, seed))
        await load.run()
        load_s = time.monotonic() - began
        ended_s, booked_s = await recovered
        await _until(engine, budget, lambda _, reserved: not reserved, timeout_s=_SETTLE_S)
    finally:
        await asyncio.to_thread(gateways.stop)
    found = await _books(engine, budget)
    await engine.dispose()
    return {
        "seed": seed,
        **found,
        "answered": load.answered,
        "lost": load.lost,
        "refused_for_now": load.refused_for_now,
        "load_s": round(load_s, 2),
        "lease_recovered_s": round(ended_s, 2),
        "requests_booked_s": round(booked_s, 2),
    }


def wrong_with(found: dict[str, Any]) -> list[str]:
    """What of the figures to reach a run missed; empty: nothing."""
    limit, spent = found["limit_nano_usd"], found["spent_nano_usd"]
    charged, overrun = found["charged_nano_usd"], found["overrun_nano_usd"]
    checks = {
        "charges less overrun pass the limit": charged - overrun > limit,
        "the books differ from the charges": charged != spent + overrun,
        "overrun is more than 0.5 % of spend": overrun * 200 > charged,
        "less than 95 % was spent": charged * 100 < limit * 95,
        "something stayed reserved": found["reserved_nano_usd"] != 0,
        "the killed one's lease stayed longer than 30 s": found["lease_recovered_s"] > 30,
        "the killed one's requests stayed open": found["requests_booked_s"] >= _SETTLE_S,
    }
    return [what for what, happened in checks.items() if happened]


async def _ready(urls: list[str]) -> None:
    async with httpx.AsyncClient(timeout=5.0) as client, asyncio.timeout(_START_S):
        for url in urls:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{url}/health/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.2)


async def _kill_one(
    gateways: Gateways, folder: Path, engine: AsyncEngine, budget: Budget, seed: int
) -> tuple[float, float]:
    """Kill a process once a third of the limit is gone; seconds until its lease had ended, and
    until what it was answering was booked."""
    draw = random.Random(seed)
    victim = draw.randrange(PROCESSES)
    share = draw.uniform(0.15, 0.6)
    enough = share * budget.limit_nano_usd
    await _until(engine, budget, lambda spent, _: spent >= enough, timeout_s=600.0)
    pid = gateways.kill(victim)
    killed_at = time.monotonic()
    logs = folder / "state" / "reservations"
    owners = {path.name.split("-")[1] for path in logs.glob(f"{pid}-*")}
    await asyncio.sleep(1.0)
    gateways.start(victim)
    ended_s = await _after(killed_at, lambda: _leased(engine, owners))
    return ended_s, await _after(
        killed_at, lambda: asyncio.to_thread(lambda: any(logs.glob(f"{pid}-*")))
    )


async def _after(began: float, goes_on: Callable[[], Awaitable[int | bool]]) -> float:
    """Seconds from `began` to the end of something, or to the end of our patience."""
    while await goes_on():
        await asyncio.sleep(0.1)
        if time.monotonic() - began > _SETTLE_S:
            break
    return time.monotonic() - began


async def _leased(engine: AsyncEngine, owners: set[str]) -> int:
    async with engine.connect() as connection:
        sum_ = select(func.coalesce(func.sum(leases.c.nano_usd), 0))
        return int((await connection.execute(sum_.where(leases.c.owner.in_(owners)))).scalar_one())


async def _spend(engine: AsyncEngine, budget: Budget) -> tuple[int, int, int]:
    """Spent, reserved, overrun."""
    counter = counter_of(budget, 0.0)
    async with engine.connect() as connection:
        found = (await read_spend(connection, [counter])).get(counter)
    return (found.spent, found.reserved, found.overrun) if found else (0, 0, 0)


async def _until(
    engine: AsyncEngine, budget: Budget, holds: Callable[[int, int], bool], *, timeout_s: float
) -> None:
    """Until spent and reserved are as wanted, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        spent, reserved, _ = await _spend(engine, budget)
        if holds(spent, reserved):
            return
        await asyncio.sleep(0.05)


async def _books(engine: AsyncEngine, budget: Budget) -> dict[str, int]:
    spent, reserved, overrun = await _spend(engine, budget)
    async with engine.connect() as connection:
        sum_ = select(func.coalesce(func.sum(charges.c.cost_nano_usd), 0))
        charged = int((await connection.execute(sum_)).scalar_one())
    return {
        "limit_nano_usd": budget.limit_nano_usd,
        "spent_nano_usd": spent,
        "reserved_nano_usd": reserved,
        "overrun_nano_usd": overrun,
        "charged_nano_usd": charged,
    }


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
