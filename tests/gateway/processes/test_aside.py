"""Long looks into the ledger from a child process: the same answers, and failures in words."""

import time
from pathlib import Path

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.alerts.settings import AlertSettings
from gateway.ledger.database import open_engine
from gateway.processes.aside import AsideError, answer, ask_aside
from gateway.settings import Settings
from tests.gateway.dashboard import scenes
from tests.gateway.ledger.conftest import (  # noqa: F401 (fixtures)
    database_url,
    engine,
    migrated_sqlite,
    postgres,
    settings,
    sqlite_url,
)


async def test_child_answers_as_the_process_itself_does(
    engine: AsyncEngine,  # noqa: F811
    settings: Settings,  # noqa: F811
) -> None:
    """On both databases, with the settings and figures that it was told."""
    await scenes.fill(engine, "normal", now=time.time())
    found = await ask_aside(engine, settings, "month_end", tz="Asia/Kolkata")
    assert found == await answer(engine, settings, "month_end", tz="Asia/Kolkata")
    assert float(found["spent_usd"]) > 0


async def test_child_says_why_it_has_no_answer(tmp_path: Path) -> None:
    """A database that is none ends it, not its parent."""
    (tmp_path / "broken.db").write_bytes(b"no database" * 100)
    broken = open_engine(f"sqlite+aiosqlite:///{tmp_path / 'broken.db'}")
    with pytest.raises(AsideError, match=r"month_end failed: .*not a database"):
        await ask_aside(broken, Settings(), "month_end", tz="UTC")
    await broken.dispose()


async def test_checks_that_are_turned_off_are_not_made(
    engine: AsyncEngine,  # noqa: F811
    settings: Settings,  # noqa: F811
) -> None:
    """Their kinds are missing, so that what they told before is not called resolved."""
    quiet = msgspec.structs.replace(settings, alerts=AlertSettings(anomalies=False))
    found = await answer(engine, quiet, "hourly_findings", now=time.time())
    assert set(found) == {"budget_forecast", "unattributed"}
