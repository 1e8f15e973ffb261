"""Kill -9 a serving gateway again and again, stop its database for a while, count the rows.

Every request whose whole answer reached a client must have exactly one row with its charges; rows
beyond those can only be of requests that were under way when the gateway was killed.
"""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from gateway.ledger import check
from gateway.ledger.database import open_engine
from gateway.ledger.ledger import Ledger
from gateway.ledger.tables import charges, requests
from gateway.processes.runtime import RUNTIME_ENV, Runtime
from gateway.settings import (
    BackendSettings,
    CacheSettings,
    DatabaseSettings,
    PriceSettings,
    RoutingSettings,
    ServerSettings,
    Settings,
)
from tests.gateway.ledger.stoppable import StoppablePostgres

CLIENTS = 8
_BODY = {"model": "auto", "messages": [{"role": "user", "content": "What is 2 + 3?"}]}


class Victim:
    """A gateway worker in front of an echo backend with a price, on PostgreSQL."""

    def __init__(self, folder: Path, database_url: str) -> None:
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder = folder
        price = PriceSettings(input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(2))
        self.settings = Settings(
            server=ServerSettings(port=self.port),
            database=DatabaseSettings(url=database_url, flush_interval_s=0.05, audit_chain=True),
            cache=CacheSettings(redis="memory"),
            routing=RoutingSettings(policy="crash", policy_dirs=[str(folder)]),
            backends=[BackendSettings(name="echo", kind="echo", model="echo", price=price)],
            state_dir=str(folder / "state"),
        )
        (folder / "crash.toml").write_text('[default]\nroute = "echo"\ncache = "off"\n')
        Runtime(
            settings=self.settings,
            database_url=database_url,
            state_dir=self.settings.state_dir,
            run_dir=str(folder),
            started_at=time.time(),
        ).save(folder / "runtime.json")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {**os.environ, RUNTIME_ENV: str(self.folder / "runtime.json")}
        command = [sys.executable, "-m", "gateway.processes.worker"]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, env=env, stderr=log)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


async def _client(url: str, answered: list[str], stop: asyncio.Event) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        while not stop.is_set():
            try:
                response = await client.post("/v1/chat/completions", json=_BODY)
            except httpx.HTTPError:
                await asyncio.sleep(0.02)
                continue
            if response.status_code == 200:
                answered.append(response.headers["x-request-id"])


async def _kill_in_the_middle(victim: Victim, answered: list[str], draw: random.Random) -> None:
    before = len(answered)
    await asyncio.to_thread(victim.start)
    for _ in range(9_000):
        if len(answered) - before >= 20:
            break
        await asyncio.sleep(0.01)
    else:
        raise TimeoutError(f"no 20 answers within 90 s; see {victim.folder / 'log'}")
    await asyncio.sleep(draw.uniform(0.0, 0.6))
    await asyncio.to_thread(victim.kill)


async def run(
    folder: Path, postgres: StoppablePostgres, *, kills: int, seed: int
) -> dict[str, Any]:
    """Kill `kills` times, the middle third of them without a database; then count.

    Args:
        postgres: migrated and empty.

    Returns:
        Figures: answered, rows, missing, doubled, beyond (rows nobody saw the answer of), problems.
    """
    draw, answered, stop = random.Random(seed), list[str](), asyncio.Event()
    victim = Victim(folder, postgres.url)
    url = f"http://127.0.0.1:{victim.port}"
    clients = [asyncio.create_task(_client(url, answered, stop)) for _ in range(CLIENTS)]
    for number in range(kills):
        if number == kills // 3:
            await asyncio.to_thread(postgres.stop)
        if number == 2 * kills // 3:
            await asyncio.to_thread(postgres.start)
        await _kill_in_the_middle(victim, answered, draw)
    stop.set()
    await asyncio.gather(*clients)
    return await _count(victim, answered)


async def _count(victim: Victim, answered: list[str]) -> dict[str, Any]:
    """Let a last process take over what the dead ones left, and compare."""
    engine = open_engine(victim.settings.database.url)
    ledger = Ledger(victim.settings, engine)
    await ledger.start()
    assert await ledger.flush(120)
    await ledger.aclose()
    async with engine.connect() as connection:
        rows = list((await connection.execute(select(requests.c.request_id))).scalars())
        booked = {
            row.request_id: row.n
            for row in await connection.execute(
                select(charges.c.request_id, func.count().label("n")).group_by(charges.c.request_id)
            )
        }
        problems = await check.rollup_problems(connection) + await check.row_problems(connection)
        chained = await check.check_chain(connection)
    await engine.dispose()
    return {
        "answered": len(answered),
        "rows": len(rows),
        "missing": len(set(answered) - set(rows)),
        "doubled": len(rows) - len(set(rows)) + sum(n != 1 for n in booked.values()),
        "uncharged": len(set(answered) - booked.keys()),
        "beyond": len(set(rows) - set(answered)),
        "left_in_journals": len(list((victim.folder / "state" / "journal").iterdir())),
        "problems": problems + ([chained.problem] if chained.problem else []),
    }
