"""`headgate report reconcile`: the hours that do not add up, by exit code and by name."""

import asyncio

from gateway.ledger.database import open_engine
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.repository import Repository
from tests.gateway.cli.conftest import Headgate
from tests.gateway.ledger.samples import charge, settlement

S = 10**9
HOUR = 3600
BEGIN = 1_763_712_000
"""2025-11-21 08:00 UTC."""


def _write(headgate: Headgate, charged: int) -> None:
    """An hour of a machine at 10 cents: half idle, half charged as said."""

    async def write() -> None:
        engine = open_engine(headgate.database_url)
        clock = MachineClock(engine)
        await clock.record("local", "small", "run", BEGIN * S, (BEGIN + HOUR) * S)
        await clock.record("local", "", "idle", BEGIN * S, (BEGIN + HOUR) * S, HOUR // 2 * S)
        one = charge("r", at=BEGIN + 60.0, cost_nano_usd=charged)
        await Repository(engine).write([settlement("r", started_at=BEGIN + 1.0, charges=(one,))])
        await engine.dispose()

    assert headgate.run("db", "upgrade").exit_code == 0
    asyncio.run(write())


def test_hours_that_add_up_exit_with_0(headgate: Headgate) -> None:
    """Half idle and half charged is all of it."""
    _write(headgate, 50_000_000)
    found = headgate.run("report", "reconcile", "--since", "2025-11-21", "--until", "2025-11-22")
    assert found.exit_code == 0
    assert "2025-11-21T08:00:00+00:00" in found.stdout


def test_hour_that_does_not_is_named_and_exits_with_1(headgate: Headgate) -> None:
    """With how much is missing, and what each engine says; a tolerance may pass it."""
    _write(headgate, 40_000_000)
    ask = ("report", "reconcile", "--since", "2025-11-21", "--until", "2025-11-22")
    found = headgate.run(*ask)
    assert found.exit_code == 1
    assert "2025-11-21T08:00:00+00:00 local: $0.01 unattributed" in found.stdout
    assert "small measured $0, charged $0.04" in found.stdout
    assert headgate.run(*ask, "--tolerance", "0.1").exit_code == 0


def test_impossible_questions_are_refused(headgate: Headgate) -> None:
    """A tolerance beyond a share, an invoice's month without the invoice."""
    assert headgate.run("report", "reconcile", "--tolerance", "2").exit_code == 2
    assert headgate.run("report", "reconcile", "--month", "2025-11").exit_code == 2
    assert headgate.run("report", "reconcile", "--since", "2025-02-30").exit_code == 2
