"""Does the money add up? Machine time, idle time and charges, each measured apart, over mixed load.

One machine with four backends: two engines, one of them speculating with a draft model, a second
engine of the same model without, and the encoder of the semantic cache. Teams of unequal mix:
long prompts, long answers, short questions, repeats (exact and semantic hits), clients that leave
in the middle of a stream. Halfway one engine is killed with -9.

The figure is |unattributed| over the machine's cost; what each category came to stands beside it.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sqlite3
import subprocess
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.environment import describe, write
from tests.e2e.serving import Headgate

CONFIG = """
[cache.exact]
sampled = true
[cache.semantic]
enabled = true
encoder = "words"
[[machines]]
name = "box"
usd_per_hour = 3600.0
[[backends]]
name = "words"
kind = "encoder"
model = "bundled:minilm"
machine = "box"
[[backends]]
name = "nano"
model = "bundled:nano"
tier = "nano"
machine = "box"
[[backends]]
name = "small"
model = "bundled:small"
tier = "small"
machine = "box"
[backends.speculation]
draft_model = "bundled:nano"
[[backends]]
name = "plain"
model = "bundled:nano"
tier = "plain"
machine = "box"
[backends.speculation]
method = "off"
"""
_TOPICS = ("rain", "bread", "music", "winter", "football", "trains", "cats", "books", "the sea")


def _question(team: str, rng: random.Random) -> dict[str, Any]:
    topic = f"{rng.choice(_TOPICS)} {rng.randrange(10_000)}"
    if team == "prefill":
        text, tokens, model = f"Sum this up: {'the ' + topic + ' is here. ' * 60}", 4, "small"
    elif team == "decode":
        text, tokens, model = f"Tell me a long story about {topic}.", 160, "nano"
    elif team == "cached":
        text, tokens, model = f"What is {rng.choice(_TOPICS[:3])}?", 12, "small"
    elif team == "leaving":
        text, tokens, model = f"Write a long poem about {topic}.", 200, "plain"
    else:
        text, tokens, model = f"What is {topic}?", 8, rng.choice(["nano", "plain", "small"])
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": team in ("decode", "leaving"),
    }


class Load:
    """Closed loops of the teams until told to stop; counts what became of their requests."""

    def __init__(self, url: str, most_pause_s: float) -> None:
        self.counts = {"answered": 0, "left": 0, "failed": 0}
        self._url = url
        self._most_pause_s = most_pause_s

    async def run(self, seconds: float) -> None:
        teams = ("prefill", "decode", "cached", "leaving", "short")
        until = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as client:
            await asyncio.gather(*(self._loop(client, team, until) for team in teams))

    async def _loop(self, client: httpx.AsyncClient, team: str, until: float) -> None:
        rng = random.Random(team)
        while time.monotonic() < until:
            body = _question(team, rng)
            headers = {"x-headgate-tags": f"feature={team}"}
            try:
                if team == "leaving":
                    await self._leave(client, {**body, "stream": True}, headers, rng)
                else:
                    response = await client.post("/v1/chat/completions", json=body, headers=headers)
                    self.counts["answered" if response.status_code == 200 else "failed"] += 1
            except httpx.HTTPError:
                self.counts["failed"] += 1
            await asyncio.sleep(rng.random() * self._most_pause_s)

    async def _leave(
        self, client: httpx.AsyncClient, body: Any, headers: Any, rng: random.Random
    ) -> None:
        wanted, seen = rng.randrange(2, 60), 0
        request = client.stream("POST", "/v1/chat/completions", json=body, headers=headers)
        async with request as response:
            async for _ in response.aiter_lines():
                seen += 1
                if seen >= wanted:
                    break
        self.counts["left"] += 1


def _kill(served: Headgate, name: str) -> None:
    for child in served.children("backends.server"):
        line = child.cmdline()
        if line[line.index("--served-model-name") + 1] == name:
            child.kill()


def _asked(served: Headgate, *question: str) -> Any:
    """A report; asked again where the machine is too busy with others to answer in time."""
    for _ in range(9):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return json.loads(served.cli("report", *question, "--json", check=False).stdout)
    raise AssertionError("no report after nine times two minutes")


def _lost_seconds(database: Path) -> dict[str, float]:
    """Whose lost work it was; reports say only how much."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT backend, SUM(ns) FROM machine_time WHERE kind = 'lost' GROUP BY backend"
        )
        return {backend: ns / 1e9 for backend, ns in rows}


def measure(seconds: float, most_pause_s: float) -> dict[str, Any]:
    """One run; the report over all of the machine's time, stop included."""
    with tempfile.TemporaryDirectory() as folder:
        served = Headgate(Path(folder), CONFIG).start(900)
        try:
            load = Load(served.url, most_pause_s)

            async def drive() -> None:
                running = asyncio.create_task(load.run(seconds))
                await asyncio.sleep(seconds / 2)
                _kill(served, "plain")
                await running

            asyncio.run(drive())
            time.sleep(1.0)
        finally:
            served.stop()
        report = _asked(served, "costs", "--group-by", "backend")
        # The hour that has not ended counts too.
        hours = _asked(served, "reconcile", "--until", "9998-01-01")
        lost = _lost_seconds(Path(folder) / "state" / "headgate.db")
    machine, missing = Decimal(report["machine_cost_usd"]), Decimal(report["unattributed_cost_usd"])
    return {
        "seconds": seconds,
        "most_pause_s": most_pause_s,
        "requests": load.counts,
        "machine_seconds": float(machine),
        "charged_seconds": float(report["totals"]["cost_usd"]),
        "charged_seconds_by_backend": {
            row["backend"]: float(row["cost_usd"]) for row in report["rows"] if row["backend"]
        },
        "idle_breakdown_seconds": {k: float(v) for k, v in report["idle_breakdown"].items()},
        "lost_seconds_by_backend": lost,
        "unattributed_seconds": float(missing),
        "unattributed_share": round(float(abs(missing) / machine), 6),
        "unattributed_share_by_hour": {
            row["hour"]: round(
                float(Decimal(row["unattributed_usd"]) / Decimal(row["cost_usd"])), 6
            )
            for row in hours["hours"]
        },
    }


def main() -> None:
    """Measure, check that the load was mixed, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--most-pause-s", type=float, default=0.5, help="Between two requests.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.seconds, arguments.most_pause_s)
    assert found["requests"]["answered"] > 0
    assert found["requests"]["left"] > 0
    figures = describe(
        "four backends on one machine, mixed teams, cancels, one engine killed; a price of $1 a "
        "second makes dollars seconds"
    ) | {"results": [found]}
    print(json.dumps(figures, indent=2))
    write(arguments.out, figures)


if __name__ == "__main__":
    main()
