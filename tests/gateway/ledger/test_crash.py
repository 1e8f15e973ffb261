"""What was answered is booked, once, whatever is killed and whatever is away."""

from pathlib import Path

import pytest

from migrations import upgrade
from tests.gateway.ledger.crash import CLIENTS, run
from tests.gateway.ledger.stoppable import StoppablePostgres

pytestmark = pytest.mark.long

KILLS = 3


@pytest.mark.timeout(300)
async def test_answered_requests_are_the_rows_through_kills_and_an_outage(
    tmp_path: Path,
) -> None:
    """Three times kill -9 under load, one of them with PostgreSQL stopped: each row once.

    `python -m tests.benchmarks.bench_ledger_crash` does it thirty times.
    """
    folder = tmp_path / "pg"
    folder.mkdir()
    postgres = StoppablePostgres(folder)
    try:
        upgrade(postgres.url)
        found = await run(tmp_path, postgres, kills=KILLS, seed=7)
    finally:
        postgres.cleanup()
    assert found["answered"] >= KILLS * 20
    assert found["missing"] == found["doubled"] == found["uncharged"] == 0
    assert found["beyond"] <= KILLS * CLIENTS, "only what was under way at a kill"
    assert found["left_in_journals"] == 0
    assert found["problems"] == []
