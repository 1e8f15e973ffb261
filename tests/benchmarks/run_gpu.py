"""What only a GPU can tell: `make test-gpu`, or `python -m tests.benchmarks.run_gpu [--bench]`.

Runs every op's tests on the GPU, bf16 included, and those of the decode graphs, and writes a report
with the device's name to tests/benchmarks/results/. Without a GPU it fails: nothing was tested.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from tests.benchmarks.environment import RESULTS, describe, write

SUITES = (
    "tests/kernels",
    "tests/backends/engine/test_graph_runner.py",
    "tests/backends/engine/test_gpu_steps.py",
)
NO_GPU = 2
_BAD = ("failure", "error")


def main() -> int:
    """Test, optionally measure, and write the report; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", action="store_true", help="also `headgate bench kernels --tune`")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch sees no GPU here, so nothing was tested", file=sys.stderr)
        return NO_GPU
    name = torch.cuda.get_device_name()
    figures = describe("op tests on the GPU in fp32, fp16 and bf16, and the decode graphs' tests")
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    figures.update(device=name, capability=capability, triton=version("triton"))
    code, figures["tests"] = run_tests()
    if arguments.bench:
        figures["kernels"] = run_bench()
    file = RESULTS / f"gpu_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
    write(file, figures)
    print(f"{name}: {figures['tests']['passed']} passed, {figures['tests']['failed']} failed")
    print(f"report: {file}")
    return code


def run_tests(*options: str) -> tuple[int, dict[str, Any]]:
    """Run the suites in a process of their own; return pytest's exit code and the counts."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *options, *SUITES]
        code = subprocess.run(command, check=False).returncode
        return code, read_report(report)


def read_report(file: Path) -> dict[str, Any]:
    """Count a JUnit report's outcomes and name what failed."""
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    failed = [c.get("name") for c in cases if any(c.find(t) is not None for t in _BAD)]
    skipped = sum(case.find("skipped") is not None for case in cases)
    on_gpu = sum("cuda" in (case.get("name") or "") for case in cases)
    return {
        "passed": len(cases) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
        "on_gpu": on_gpu,
        "failures": failed,
    }


def run_bench() -> Any:
    """The figures of `headgate bench kernels --tune`."""
    done = subprocess.run(
        [sys.executable, "-m", "backends.bench.kernels", "--tune", "--json"],
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
