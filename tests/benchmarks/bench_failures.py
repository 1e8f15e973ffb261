"""Faults of a real HTTP server under each failure policy, and how fast a backend's return is seen.

    python -m tests.benchmarks.bench_failures --out results/failures.json

Correctness first: every row is checked as the tests check it. `--docs` writes the table of
docs/failures.md anew.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog

from backends.echo import EchoBackend
from gateway.cache.store import RedisStore
from gateway.settings import BackendSettings
from tests.benchmarks.environment import describe, write
from tests.conftest import RedisServer
from tests.gateway.dispatch.fault_table import POLICIES, Row, plain, recovery, table
from tests.gateway.dispatch.test_faults import check
from tests.gateway.serving import gateway, settings

WORKLOAD = (
    "one request at a time through the gateway in process, over HTTP to two scripted servers, "
    "backends' timeout 0.4 s, a slow answer 0.12 s, a hedge after 0.03 s"
)
_ROUNDS = 5
_BEGIN, _END = "<!-- table -->\n", "<!-- end of table -->\n"


async def measure(folder: Path) -> dict[str, Any]:
    """All rows, recovery times, and how long two gateways disagree on a breaker."""
    rows: list[Row] = []
    for policy in POLICIES:
        (folder / policy).mkdir()
        rows += await table(folder / policy, policy)
    for row in rows:
        check(row)
    recovered: dict[str, list[float]] = {}
    for number in range(3):
        place = folder / f"recovery{number}"
        place.mkdir()
        for fault, seconds in (await recovery(place)).items():
            recovered.setdefault(fault, []).append(seconds)
    return {
        "results": plain(rows),
        "recovery_s": {fault: max(seconds) for fault, seconds in recovered.items()},
        "breaker_agreement_s": await agreement(folder),
    }


async def agreement(folder: Path) -> dict[str, float]:
    """Seconds from a breaker's opening in one gateway until the other one knows."""
    found: list[float] = []
    server = RedisServer(folder)
    server.start()
    try:
        async with contextlib.AsyncExitStack() as stack:
            registries = []
            for name in ("one", "two"):
                place = folder / name
                place.mkdir()
                url = "http://a.test/v1"
                listed = BackendSettings(name="a", kind="openai", model="m", base_urls=[url])
                store = RedisStore(server.url, timeout_s=1.0)
                made = settings(place, listed, BackendSettings(name="b", kind="echo", model="e"))
                backends = {"a": EchoBackend("a"), "b": EchoBackend("b")}
                running = await stack.enter_async_context(gateway(made, backends, store))
                registries.append(running.parts.registry)
            first, second = registries
            for _ in range(_ROUNDS):
                for _ in range(3):
                    first.mark_failure("a", "boom")
                began = time.perf_counter()
                while second.state()["a"]["breaker"] == "closed":  # noqa: ASYNC110 (no event)
                    await asyncio.sleep(0.005)
                found.append(time.perf_counter() - began)
                first.mark_success("a")
                while second.state()["a"]["breaker"] != "closed":  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
    finally:
        server.stop()
    found.sort()
    return {"median": round(found[len(found) // 2], 3), "worst": round(found[-1], 3)}


def markdown(figures: dict[str, Any]) -> str:
    """The table: faults by policies; streams where they differ."""
    by_place: dict[tuple[str, str], dict[bool, dict[str, Any]]] = {}
    for row in figures["results"]:
        by_place.setdefault((row["fault"], row["policy"]), {})[row["stream"]] = row
    lines = ["| fault | " + " | ".join(POLICIES) + " |", "|---" * (1 + len(POLICIES)) + "|"]
    for fault in dict.fromkeys(row["fault"] for row in figures["results"]):
        cells = []
        for policy in POLICIES:
            rows = by_place[fault, policy]
            whole, stream = _cell(rows[False]), _cell(rows[True])
            same = whole == stream
            cells.append(whole if same else f"whole: {whole}<br>stream: {stream}")
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    client = row["client"] + (f" from {row['answered_by']}" if row["text_whole"] else "")
    return client + "; " + (", ".join(row["charges"]) or "nothing charged")


def main() -> int:
    """Measure; write JSON and, if asked, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path)
    chosen = parser.parse_args()
    quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=quiet)
    with tempfile.TemporaryDirectory() as folder:
        figures = {**describe(WORKLOAD), **asyncio.run(measure(Path(folder)))}
    write(chosen.out, figures)
    if chosen.docs is not None:
        text = chosen.docs.read_text()
        table_text = _BEGIN + markdown(figures) + _END
        pattern = re.escape(_BEGIN) + ".*" + re.escape(_END)
        chosen.docs.write_text(re.sub(pattern, lambda _: table_text, text, flags=re.DOTALL))
    print(json.dumps({k: v for k, v in figures.items() if k != "results"}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
