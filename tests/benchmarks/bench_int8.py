"""What int8 costs: each bundled model against the bf16 weights that it was rounded from.

`python -m tests.benchmarks.bench_int8 nano=FOLDER …`: the folders are exports of the checkpoints
(`python -m backends.bundled.export CHECKPOINT FOLDER --dtype bfloat16`), which are not shipped, so
`make bench` leaves this out. Both sides compute in fp32 and answer the same questions.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.evaluation.engine_candidate import EngineCandidate
from backends.evaluation.run import Suites, differences, measure, read_suites
from tests.benchmarks.environment import describe, write


def compare(name: str, folder: str, suites: Suites) -> dict[str, Any]:
    """Points of pass rate and per cent of bits that int8 loses (negative: wins)."""
    sides = [
        measure(EngineCandidate("bf16", folder), suites),
        measure(EngineCandidate("int8", f"bundled:{name}"), suites),
    ]
    (apart,) = differences(sides)
    whole, rounded = (side.evaluation for side in sides)
    return {
        "model": name,
        "weights": rounded.model.weights,
        "pass_rate": {"bf16": whole.pass_rate, "int8": rounded.pass_rate},
        "points_lost": round(-100 * apart.difference, 2),
        "points_lost_interval": [round(-100 * apart.high, 2), round(-100 * apart.low, 2)],
        "bits_per_byte": {"bf16": whole.bits_per_byte, "int8": rounded.bits_per_byte},
        "bits_lost_percent": _bits_lost(whole.bits_per_byte or {}, rounded.bits_per_byte or {}),
    }


def _bits_lost(whole: Mapping[str, float], rounded: Mapping[str, float]) -> dict[str, float]:
    return {part: round(100 * (rounded[part] / whole[part] - 1), 3) for part in whole}


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    suites = read_suites(["tasks", "lm"])
    pairs = [pair.split("=", 1) for pair in options.pairs]
    figures = {
        **describe("tasks and lm suites, greedy, fp32 activations; bf16 checkpoint against int8"),
        "results": [compare(name, folder, suites) for name, folder in pairs],
    }
    print(json.dumps(figures, indent=2))
    write(options.out, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
