"""Gateways to look at: empty, after a normal month, and overloaded; on a real port, in a thread."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.contract import BackendHealth
from backends.echo import EchoBackend
from gateway.ledger.budget_store import Budget, set_budget
from gateway.ledger.database import open_engine
from gateway.ledger.feedback import add_feedback
from gateway.ledger.key_store import NewKey, create_key
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.records import (
    AttemptRecord,
    CandidateRecord,
    ChargeRecord,
    RequestRecord,
    Settlement,
)
from gateway.ledger.repository import Repository
from gateway.ledger.tables import policy_versions
from gateway.processes.runtime import database_url
from gateway.settings import BackendSettings, CacheSettings, ServerSettings, Settings
from gateway.settings.prices import MachineSettings, PriceSettings
from tests.gateway import serving

Scene = Literal["empty", "normal", "overloaded"]
HOSTILE = "<script>document.title='taken'</script>"
FORMULA = '=HYPERLINK("http://evil.example","x")'
TEAMS = ("search", "support", "billing", "research", FORMULA)
DAY_S = 86_400
_PRICE = PriceSettings(input_usd_per_mtok=Decimal("0.15"), output_usd_per_mtok=Decimal("0.60"))


class BusyBackend(EchoBackend):
    """An echo that says how busy it is."""

    def __init__(self, name: str, *, running: int, waiting: int, kv: float, why: str = "") -> None:
        super().__init__(name)
        self._health = BackendHealth(
            ready=not why, running=running, waiting=waiting, capacity=64, kv_usage_ratio=kv,
            context_tokens=4096, detail=why,
        )  # fmt: skip

    async def probe(self) -> BackendHealth:
        return self._health


def settings_of(folder: Path) -> Settings:
    """Two tiers on machines, one outside; keys are needed."""
    return serving.settings(
        folder,
        BackendSettings(name="small", kind="echo", model="e-1", tier="small", machine="rack-1"),
        BackendSettings(name="base", kind="echo", model="e-2", tier="base", machine="rack-2"),
        BackendSettings(name="outside", kind="echo", model="theirs", tier="base", price=_PRICE),
        cache=CacheSettings(redis="memory"),
        server=ServerSettings(auth="keys"),
        machines=[
            MachineSettings(name="rack-1", type="l4", usd_per_hour=Decimal("0.80")),
            MachineSettings(name="rack-2", type="h100", usd_per_hour=Decimal("2.50")),
        ],
    )  # fmt: skip


def backends_of(scene: Scene) -> dict[str, EchoBackend]:
    """Idle, at work, or more than can be done."""
    full = scene == "overloaded"
    load = (64, 212, 0.985) if full else (0, 0, 0.0) if scene == "empty" else (11, 2, 0.37)
    away = "connection refused: nobody listens on 10.0.0.7:8000" if full else ""
    return {
        "small": BusyBackend("small", running=load[0], waiting=load[1], kv=load[2]),
        "base": BusyBackend("base", running=load[0] // 2, waiting=load[1] // 3, kv=load[2] / 2),
        "outside": BusyBackend("outside", running=0, waiting=0, kv=0.0, why=away),
    }


def request_at(number: int, at: float, draw: random.Random, *, full: bool) -> Settlement:
    """One request as the pipeline leaves it, cheap things more often than dear ones."""
    team = draw.choices(TEAMS, (8, 5, 3, 2, 1))[0]
    backend = draw.choices(("small", "base", "outside"), (7, 3, 1))[0]
    cache = draw.choices(("miss", "exact", "semantic"), (6, 3, 1))[0]
    failed = draw.random() < (0.4 if full else 0.01)
    hit, name = cache != "miss" and not failed and number > 50, f"{number:012x}"
    tokens, answer = draw.randint(40, 900), draw.randint(5, 400)
    ns = draw.randint(20, 90) * 1_000_000_000
    took_ms = draw.randint(50, 900)
    cost = ns * {"small": 222, "base": 694, "outside": 100}[backend] // 1_000_000
    estimates = {
        "small": (0.62, 1_100, 0.3),
        "base": (0.81, 3_900, 0.9),
        "outside": (0.9, 9_000, 1),
    }
    candidates = tuple(
        CandidateRecord(backend=b, quality=min(max(draw.gauss(q, 0.15), 0), 1),
                        cost_nano_usd=int(c * tokens * draw.uniform(0.5, 1.5)), latency_ms=1000 * s)
        for b, (q, c, s) in estimates.items()
    )  # fmt: skip
    charge = ChargeRecord(
        request_id=name, seq=0, kind="answer", backend=backend, at=at, prompt_tokens=tokens,
        cached_prompt_tokens=tokens // 3, completion_tokens=answer, prefill_ns=ns // 3,
        decode_ns=ns - ns // 3, machine_ns=ns, cost_nano_usd=cost,
        machine={"small": "rack-1", "base": "rack-2"}.get(backend),
        machine_type={"small": "l4", "base": "h100"}.get(backend),
        unit_prices={"usd_per_hour": "0.80"},
    )  # fmt: skip
    reused = hit and f"{number % 40:012x}"
    request = RequestRecord(
        request_id=name, endpoint="chat/completions", team=team, key=f"key-{team[:4]}", status=200,
        model=HOSTILE if number % 97 == 0 else "auto", user=HOSTILE if number % 89 == 0 else None,
        tags={"feature": HOSTILE} if number % 83 == 0 else {}, started_at=at,
        duration_ms=took_ms * (20 if full else 1), ttft_ms=80.0, outcome="ok", cache="miss",
        policy="test", policy_sha256="ab" * 32, rule=draw.choice(("default", "short", "uncached")),
        task=draw.choice(("code", "maths", "chat", "knowledge")), difficulty=draw.random(),
        language="en", prompt_tokens_estimate=tokens, turns=1, backend=backend,
        backend_model=f"echo-{backend}", prompt_tokens=tokens, cached_prompt_tokens=tokens // 3,
        completion_tokens=answer, candidates=candidates, cost_nano_usd=cost,
        attempts=(AttemptRecord(backend=backend, ms=took_ms),),
        reasons=(("default", True, "no rule before it matched"),),
    )  # fmt: skip
    if failed:
        failure: dict[str, Any] = {"outcome": "error", "status": 503, "backend": None}
        failure |= {"error_code": "service_unavailable", "cost_nano_usd": 0, "completion_tokens": 0}
        return Settlement(request=msgspec.structs.replace(request, **failure))
    if hit:
        saved: dict[str, Any] = {"cache": cache, "reuses": reused, "saved_nano_usd": cost}
        saved |= {"cost_nano_usd": 0, "duration_ms": 1.2, "attempts": ()}
        return Settlement(request=msgspec.structs.replace(request, **saved))
    return Settlement(request=request, charges=(charge,))


async def fill(engine: AsyncEngine, scene: Scene, *, now: float) -> dict[str, str]:
    """Keys for everybody; what happened unless the scene is empty. Secrets by name."""
    wanted = {
        "admin": NewKey(team="operations", scopes=("inference", "reports", "admin")),
        "auditor": NewKey(team="finance", scopes=("admin",), role="auditor"),
        "team": NewKey(team="search", scopes=("admin",), role="team"),
        "reports": NewKey(team="finance", name=HOSTILE, scopes=("reports",)),
        "inference": NewKey(team="search", name="app", scopes=("inference",)),
    }
    async with engine.begin() as connection:
        secrets = {
            name: (await create_key(connection, key, now=now - 3 * DAY_S))[1]
            for name, key in wanted.items()
        }
    if scene == "empty":
        return secrets
    draw, full = random.Random(7), scene == "overloaded"
    count = 500
    rows = []
    for number in range(count):
        age_s = 29 * DAY_S * (1 - number / count) ** 3
        rows.append(request_at(number, now - 5 - age_s, draw, full=full))
    await Repository(engine).write(rows)
    async with engine.begin() as connection:
        for number in range(60):
            score = draw.choice((0.0, 1.0, 1.0))
            await add_feedback(connection, f"{number * 8:012x}", score=score, comment="", now=now)
        for scope, window, limit in (
            ("global", "month", 40.0), ("team:search", "day", 1.5), ("team:support", "month", 2.5)
        ):  # fmt: skip
            nano = int(limit * 1e9 / (10 if full else 1))
            budget = Budget(scope=scope, window=window, limit_nano_usd=nano)
            await set_budget(connection, budget, now=now)
        kept = {
            "name": "test",
            "sha256": "ab" * 32,
            "text": serving.POLICY,
            "first_us": int(now * 1e6),
        }
        await connection.execute(insert(policy_versions), kept)
    await _machines(MachineClock(engine), rows, full=full)
    return secrets


async def _machines(clock: MachineClock, rows: list[Settlement], *, full: bool) -> None:
    """Machine time that explains the charges: each machine ran just as long as it needed to."""
    busy: dict[tuple[str, str, int], int] = {}
    last: dict[tuple[str, str, int], float] = {}
    for charge in (charge for row in rows for charge in row.charges if charge.machine):
        key = (str(charge.machine), charge.backend, int(charge.at // DAY_S))
        busy[key] = busy.get(key, 0) + charge.machine_ns
        last[key] = max(last.get(key, 0.0), charge.at)
    for (machine, backend, _), ns in busy.items():
        at = last[machine, backend, _]
        ran = int(ns / (0.97 if full else 0.58))
        span = (int(at * 1e9) - ran, int(at * 1e9))
        await clock.record(machine, backend, "run", *span)
        await clock.record(machine, "", "idle", *span, int(ran * (0.0 if full else 0.39)))
        await clock.record(machine, backend, "loading", *span, int(ran * 0.02))
        await clock.record(machine, backend, "busy", *span, ns)


class Site:
    """A gateway that browsers can reach."""

    def __init__(self, port: int, keys: dict[str, str], served: serving.Gateway) -> None:
        self.url = f"http://localhost:{port}"
        self.loop = asyncio.get_running_loop()
        self.keys = keys
        self.served = served


async def _listening(port: int) -> None:
    """Wait until connections are taken."""
    for _ in range(1000):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def site(
    folder: Path, scene: Scene, *, port: int, settings: Settings | None = None
) -> Iterator[Site]:
    """Serve a scene, in a thread with an event loop of its own."""
    ready, stop = threading.Event(), threading.Event()
    found: list[Site] = []
    failed: list[BaseException] = []

    async def run() -> None:
        chosen = settings or settings_of(folder)
        serving.prepare(Path(chosen.state_dir))
        engine = open_engine(database_url(chosen))
        keys = await fill(engine, scene, now=datetime.now(UTC).timestamp())
        await engine.dispose()
        async with serving.gateway(chosen, backends_of(scene)) as served:
            server = Server(
                served.app, address="127.0.0.1", port=port, interface=Interfaces.ASGI,
                http=HTTPModes.http1, websockets=False, log_enabled=False,
            )  # fmt: skip
            task = asyncio.create_task(server.serve())
            found.append(Site(port, keys, served))
            await _listening(port)
            ready.set()
            await asyncio.to_thread(stop.wait)
            served.pipeline.draining = True
            server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait({task}, timeout=5.0)

    def main() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # told by the thread that waits
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=main, name=f"site {scene}", daemon=True)
    thread.start()
    assert ready.wait(60), "the site did not start within a minute"
    if failed:
        raise failed[0]
    try:
        yield found[0]
    finally:
        stop.set()
        thread.join(10)


def main() -> None:
    """`python -m tests.gateway.dashboard.scenes SCENE PORT`: to look at by hand."""
    import sys
    import tempfile

    scene, port = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder, site(Path(folder), scene, port=port) as shown:  # type: ignore[arg-type]
        print(shown.url, shown.keys, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
