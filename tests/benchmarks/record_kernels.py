"""What every Triton kernel takes of a GPU, compiled for it with none here, as JSON.

`python -m tests.benchmarks.record_kernels --out tests/benchmarks/results/kernel_footprints.json`
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.environment import describe, write

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))

from compile_cases import CAPABILITIES, all_cases, footprint


def main() -> None:
    """Compile everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    rows = [
        {"kernel": case.name, "capability": capability, **footprint(case, capability)._asdict()}
        for case in all_cases()
        for capability in CAPABILITIES
        if case.runs_on(capability)
    ]
    figures = describe("each kernel with the options its op launches with, compiled offline")
    figures["triton"] = version("triton")
    write(out, {**figures, "results": rows})
    spilling = [row for row in rows if row["spilled_bytes"]]
    print(f"{len(rows)} compilations, {len(spilling)} spill")
    for row in spilling:
        print(row)


if __name__ == "__main__":
    main()
