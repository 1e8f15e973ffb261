"""30 kill -9 of a serving gateway under load, PostgreSQL stopped for ten of them.

Answered requests must be the rows, each once; exits 1 otherwise. Slow: some minutes.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from migrations import upgrade
from tests.benchmarks.environment import describe, write
from tests.gateway.ledger.crash import CLIENTS, run
from tests.gateway.ledger.stoppable import StoppablePostgres


def main() -> int:
    """Kill, count, print; 0 if no row is missing, doubled or without its charge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this is root
        (folder / "pg").mkdir()
        postgres = StoppablePostgres(folder / "pg")
        try:
            upgrade(postgres.url)
            found = asyncio.run(run(folder, postgres, kills=asked.kills, seed=asked.seed))
        finally:
            postgres.cleanup()
    workload = (
        f"{asked.kills} kill -9 at random times under {CLIENTS} clients, PostgreSQL stopped "
        f"for {2 * asked.kills // 3 - asked.kills // 3} of them"
    )
    figures = {**describe(workload), "kills": asked.kills, "seed": asked.seed, **found}
    print(figures)
    write(asked.out, figures)
    wrong = found["missing"] or found["doubled"] or found["uncharged"] or found["problems"]
    return 1 if wrong or found["beyond"] > asked.kills * CLIENTS else 0


if __name__ == "__main__":
    sys.exit(main())
