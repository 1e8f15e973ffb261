"""`make bench`: every benchmark in turn, on an otherwise quiet machine; writes results/*.json."""

import subprocess
import sys

from tests.benchmarks.environment import RESULTS

BENCHMARKS = (
    "startup",
    "batching",
    "engine_overhead",
    "structured",
    "gateway",
    "decision",
    "classifier",
    "family",
    "reports",
    "dashboard",
    "ledger_crash",
    "attribution",
    "conservation",
    "foreign",
    "limits",
    "budgets",
    "failures",
    "outage",
    "partitions",
    "insights",
    "planner",
)


def main() -> int:
    """Run those named on the command line, or all. The exit code is that of the first failure."""
    for name in sys.argv[1:] or BENCHMARKS:
        command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}"]
        command += ["--out", str(RESULTS / f"{name}.json")]
        print("$", *command, flush=True)
        done = subprocess.run(command, check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
