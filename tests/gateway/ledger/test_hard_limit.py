"""The promise of hard limits, with real gateway processes, one of which is killed.

`tests/benchmarks/bench_budgets.py` runs the same with many seeds.
"""

from pathlib import Path

import pytest

from tests.gateway.ledger.hard_limit import run, wrong_with

pytestmark = pytest.mark.long


@pytest.mark.timeout(300)
async def test_processes_killed_under_load_never_pass_the_limit(
    database_url: str, tmp_path: Path
) -> None:
    """64 clients, 4 processes, kill -9: limits hold, the books balance, the lease returns."""
    (tmp_path / "state").mkdir(exist_ok=True)
    found = await run(tmp_path, database_url, seed=7)
    assert wrong_with(found) == [], found
