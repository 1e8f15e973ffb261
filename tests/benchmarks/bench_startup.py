"""How long `headgate serve` takes to be ready, and how large its processes are.

Starts the built-in configuration (gateway, two engines, encoder, private Redis) several times on
an installed checkout, asks one question each time, and prints JSON.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import psutil

from tests.benchmarks.environment import describe, write
from tests.e2e.serving import Headgate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    seconds: list[float] = []
    resident: dict[str, int] = {}
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            headgate = Headgate(Path(folder)).start()
            try:
                seconds.append(headgate.ready_after_s)
                answer = headgate.sdk().chat.completions.create(
                    model="auto", messages=[{"role": "user", "content": "What is 2 + 3?"}]
                )
                assert answer.choices[0].message.content
                resident = _resident(headgate)
            finally:
                headgate.stop()
    figures = {
        **describe("built-in configuration, one question asked"),
        "results": [
            {
                "ready_s_median": round(statistics.median(seconds), 2),
                "ready_s": [round(value, 2) for value in seconds],
                "resident_bytes": resident,
            }
        ],
    }
    print(json.dumps(figures, indent=2))
    write(options.out, figures)


def _resident(headgate: Headgate) -> dict[str, int]:
    """Resident bytes by kind of process; of several of a kind the largest."""
    sizes: dict[str, int] = {}
    kinds = {
        "gateway": "gateway.processes.worker",
        "engine": "backends.server",
        "encoder": "backends.encoder",
        "redis": "redis-server",
    }
    for kind, marker in kinds.items():
        for process in headgate.children(marker):
            sizes[kind] = max(sizes.get(kind, 0), process.memory_info().rss)
    assert headgate.process is not None
    sizes["supervisor"] = psutil.Process(headgate.process.pid).memory_info().rss
    return sizes


if __name__ == "__main__":
    main()
