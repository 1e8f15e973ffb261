"""A ledger of made-up requests, read and replayed: rows per second, by CPU and by the clock."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from gateway.ledger.database import open_engine
from gateway.ledger.pricing import CostEstimator
from gateway.ledger.tables import requests
from gateway.routing.past import read_past
from gateway.routing.policy_book import PolicyBook
from gateway.routing.replay import replay
from gateway.settings import BUILT_IN, RoutingSettings
from migrations import upgrade
from policies.model import BackendCard

BATCH = 5_000
TASKS = ("chat", "code", "maths", "knowledge")
CARDS = {n: BackendCard(name=n, tier=n, model="m", context_tokens=2048) for n in ("nano", "small")}


def policy_of(rules: int) -> str:
    """So many rules of three conditions, of which a few match."""
    text = "".join(
        f'[[rules]]\nname = "r{i}"\nroute = "small"\nfallbacks = ["nano"]\n'
        f'when = {{ task = ["code"], difficulty = {{ min = 0.{i % 10} }}, team = ["t{i}"] }}\n'
        for i in range(rules)
    )
    return text + "[default]\nsplit = { nano = 0.5, small = 0.5 }\n"


async def measure_replay(folder: Path, rows: int) -> dict[str, Any]:
    """Fill a ledger, read it back as columns, and decide on all of it with 20 rules."""
    url = f"sqlite+aiosqlite:///{folder / 'ledger.db'}"
    upgrade(url)
    engine = open_engine(url)
    async with engine.begin() as connection:
        for start in range(0, rows, BATCH):
            await connection.execute(insert(requests), _rows(start, min(BATCH, rows - start)))
    (folder / "twenty.toml").write_text(policy_of(20))
    book = PolicyBook(RoutingSettings(policy="twenty", policy_dirs=[str(folder)]))
    times = [(time.perf_counter(), time.process_time())]
    async with engine.connect() as connection:
        past = await read_past(connection, since_us=0, until_us=1 << 62)
    times.append((time.perf_counter(), time.process_time()))
    report = replay(past, [book.get()], CARDS, CostEstimator(BUILT_IN))
    times.append((time.perf_counter(), time.process_time()))
    await engine.dispose()
    assert report["replayed"] == rows
    return {
        "rows": rows,
        "rules": 20,
        "read_rows_per_s": round(rows / (times[1][0] - times[0][0])),
        "decide_rows_per_s": round(rows / (times[2][0] - times[1][0])),
        "decide_rows_per_cpu_s": round(rows / (times[2][1] - times[1][1])),
        "both_rows_per_cpu_s": round(rows / (times[2][1] - times[0][1])),
    }


def _rows(start: int, count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(start)
    told = {"prompt_tokens_bound": 400, "max_tokens": 256, "quality": {"nano": 0.4, "small": 0.7},
            "loads": {"nano": 0.1, "small": 0.4}}  # fmt: skip
    return [
        {
            "request_id": f"r{start + i}",
            "endpoint": "chat/completions",
            "model": "auto",
            "team": f"t{i % 40}",
            "key": "k",
            "tags": {"env": "prod"},
            "started_us": (start + i) * 100_000,
            "duration_ms": 100.0,
            "stream": False,
            "outcome": "ok",
            "status": 200,
            "cache": "miss",
            "task": TASKS[i % 4],
            "difficulty": float(rng.random()),
            "language": "en",
            "prompt_tokens_estimate": 90,
            "turns": 1,
            "backend": "small",
            "prompt_tokens": 90,
            "completion_tokens": 60,
            "candidates": [{"backend": "small", "cost_nano_usd": 100}],
            "attempts": [],
            "reasons": [],
            "decided_on": told,
            "draw": float(rng.random()),
            "probability": 0.5,
            "cost_nano_usd": 100,
        }
        for i in range(count)
    ]


def main() -> None:
    """Print the figures alone."""
    import asyncio
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure_replay(Path(folder), 100_000)), indent=2))


if __name__ == "__main__":
    main()
