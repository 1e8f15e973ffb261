"""Figures that change by the second: gathered once per tick, sent to everybody who watches.

The gathering begins with the first watcher and ends with the last, so a gateway that nobody looks
at does none of it.
"""

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, multiprocess
from sqlalchemy.exc import SQLAlchemyError

from gateway.dashboard.render import milliseconds, share
from gateway.dashboard.request_rows import recent_requests
from gateway.ledger.money import dollars
from gateway.pipeline import Pipeline

INTERVAL_S = 2.0
KEPT = 150
"""Points of the live chart: five minutes."""
_LATE_US = 10_000_000
FOLLOWED = ("request_id", "at", "team", "key", "model", "backend", "rule", "task", "cache",
            "outcome", "status")  # fmt: skip
"""Of a request, what a followed list shows and can be filtered by."""
_COUNTED = {"headgate_requests_total": "requests", "headgate_tokens_total": "tokens"}


class Feed:
    """One per gateway process."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._watchers = 0
        self._followers = 0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._last: tuple[float, dict[str, float]] | None = None
        self.points: deque[tuple[float, float, float, int]] = deque(maxlen=KEPT)
        """(unix seconds, requests/s, tokens/s, in flight)"""
        self._figures: dict[str, str | int] = {}
        self._message = self._with_rows = ""
        self._seen_us = 0

    def figures(self) -> dict[str, str | int]:
        """What the pages' places are called → what they show; as of now while nobody watches."""
        return self._figures or self._now({}, self._pipeline.in_flight)

    async def messages(self, *, rows: bool = False) -> AsyncIterator[str]:
        """JSON, one per tick; the first has the points so far.

        Args:
            rows: with the newest requests, at most a page of them.
        """
        self._watchers += 1
        self._followers += rows
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="dashboard feed")
        try:
            yield json.dumps({"points": list(self.points), "figures": self.figures()})
            while not self._pipeline.draining:
                changed = self._changed
                await changed.wait()
                yield self._with_rows if rows else self._message
        finally:
            self._watchers -= 1
            self._followers -= rows

    async def _run(self) -> None:
        """Gather until nobody watches."""
        while self._watchers and not self._pipeline.draining:
            await self._tick()
            await asyncio.sleep(INTERVAL_S)
        self._task, self._last, self._figures = None, None, {}
        self._wake()  # whoever waits sees that the gateway drains

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _tick(self) -> None:
        now, counts = time.time(), await self._counts()
        rates: dict[str, float] = {}
        if self._last is not None:
            then, before = self._last
            rates = {n: max(counts[n] - before[n], 0.0) / max(now - then, 0.1) for n in counts}
            in_flight = round(counts["in_flight"])
            self.points.append((now, rates["requests"], rates["tokens"], in_flight))
        self._last = now, counts
        self._figures = self._now(rates, round(counts["in_flight"]))
        point = self.points[-1] if rates else None
        message = {"point": point, "figures": self.figures()}
        self._message = json.dumps(message)
        if self._followers:
            self._with_rows = json.dumps({**message, "rows": await self._newest()})
        self._wake()

    async def _newest(self) -> list[dict[str, Any]]:
        """Requests since the last tick, the newest first; one look for all who follow."""
        try:
            async with self._pipeline.parts.engine.connect() as connection:
                rows = await recent_requests(connection, since_us=self._seen_us)
        except (SQLAlchemyError, OSError):
            return []  # the overview says that the database is away
        if rows:  # the ledger writes in batches: what started a little earlier may come later
            self._seen_us = rows[0]["started_us"] - _LATE_US
        return [
            {
                **{name: row[name] or "" for name in FOLLOWED},
                "ms": milliseconds(row["duration_ms"]),
                "tokens": f"{row['prompt_tokens']} + {row['completion_tokens']}",
                "usd": dollars(row["cost_usd"]),
            }
            for row in rows
        ]

    async def _counts(self) -> dict[str, float]:
        """Of all gateway processes: requests and tokens so far, requests in flight."""
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            return await asyncio.to_thread(_of_all_processes)
        found = _counted(self._pipeline.parts.metrics.registry)
        return {**found, "in_flight": float(self._pipeline.in_flight)}

    def _now(self, rates: dict[str, float], in_flight: int) -> dict[str, str | int]:
        parts = self._pipeline.parts
        figures: dict[str, str | int] = {
            "in_flight": in_flight,
            "requests/s": f"{rates.get('requests', 0.0):.1f}",
            "tokens/s": f"{rates.get('tokens', 0.0):,.0f}",
            "pending": int(parts.ledger.state()["pending"]),
        }
        drained = parts.overrides.effect.drained
        for name, about in parts.registry.state().items():
            figures |= _of_backend(name, about, name in drained)
        return figures


def _of_backend(name: str, about: dict[str, Any], drained: bool) -> dict[str, str | int]:
    kv = about["kv_usage_ratio"]
    return {
        f"state {name}": "drained" if drained else "ready" if about["ready"] else "away",
        f"load {name}": share(about["load"]),
        f"running {name}": about["running"],
        f"waiting {name}": about["waiting"],
        f"kv {name}": share(kv),
    }


def _counted(registry: CollectorRegistry) -> dict[str, float]:
    found = dict.fromkeys(_COUNTED.values(), 0.0)
    for metric in registry.restricted_registry(list(_COUNTED)).collect():
        for sample in metric.samples:
            if sample.name in _COUNTED:
                found[_COUNTED[sample.name]] += sample.value
    return found


def _of_all_processes() -> dict[str, float]:
    """Out of the counters' and gauges' files; histograms are most of what else lies there."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    files = [str(file) for kind in ("counter", "gauge") for file in folder.glob(f"{kind}_*.db")]
    found = dict.fromkeys((*_COUNTED.values(), "in_flight"), 0.0)
    names = {**_COUNTED, "headgate_requests_in_flight": "in_flight"}
    for metric in multiprocess.MultiProcessCollector.merge(files):  # type: ignore[no-untyped-call]
        for sample in metric.samples:
            if sample.name in names:
                found[names[sample.name]] += sample.value
    return found
