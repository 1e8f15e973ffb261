"""Alerts of a whole gateway process that is killed (kill -9) while it tells: none lost."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select, text

from gateway.alerts.settings import AlertSettings, ChannelSettings
from gateway.ledger.database import open_engine
from gateway.ledger.repository import Repository
from gateway.ledger.tables import alert_deliveries, alerts
from gateway.processes.runtime import RUNTIME_ENV, Runtime
from gateway.settings import BackendSettings, CacheSettings, ServerSettings
from migrations import upgrade
from tests.gateway import serving
from tests.gateway.ledger.samples import settlement
from tests.gateway.webhooks import receiving

PATIENCE_S = 60.0


def _prepare(folder: Path, url: str) -> str:
    """What a supervisor leaves a worker, and thirty requests that just failed; the database."""
    ops = ChannelSettings(name="ops", kind="webhook", url=url)
    chosen = msgspec.structs.replace(
        serving.settings(
            folder,
            BackendSettings(name="small", kind="echo", model="e", tier="small"),
            BackendSettings(name="base", kind="echo", model="e", tier="base"),
            server=ServerSettings(port=0),
            cache=CacheSettings(redis="memory"),
        ),
        alerts=AlertSettings(channels=[ops], every_s=0.1),
    )
    state = folder / "state"
    state.mkdir(exist_ok=True)
    database = f"sqlite+aiosqlite:///{state / 'headgate.db'}"
    upgrade(database)
    Runtime(
        settings=chosen,
        addresses={},
        database_url=database,
        state_dir=str(state),
        run_dir=str(folder),
        started_at=time.time(),
    ).save(folder / "runtime.json")
    now = time.time()
    failed: dict[str, Any] = {"outcome": "error", "status": 502, "charges": ()}

    async def write() -> None:
        engine = open_engine(database)
        rows = [settlement(f"bad{n}", started_at=now, **failed) for n in range(30)]
        await Repository(engine).write(rows)
        await engine.dispose()

    asyncio.run(write())
    return database


@contextlib.contextmanager
def _gateway(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, RUNTIME_ENV: str(folder / "runtime.json")}
    command = [sys.executable, "-m", "gateway.processes.worker"]
    process = subprocess.Popen(command, env=env, stderr=(folder / "log").open("ab"))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def _outbox(database: str, *, expire: bool = False) -> tuple[list[str], dict[str, bool]]:
    """Keys of all alerts; delivery → whether it is done. With `expire` all claims' time is up."""
    engine = open_engine(database)
    d = alert_deliveries.c
    async with engine.begin() as connection:
        if expire:
            await connection.execute(text("UPDATE alert_deliveries SET due_us = 0"))
        keys = [row.key for row in await connection.execute(select(alerts.c.key))]
        rows = (await connection.execute(select(d.alert_id, d.event, d.delivered_us))).all()
    await engine.dispose()
    return keys, {f"{row.alert_id}-{row.event}-ops": row.delivered_us is not None for row in rows}


def test_killed_gateway_loses_no_alert_and_the_next_one_marks_repeats(tmp_path: Path) -> None:
    """Killed when a message was sent and not yet noted: the next process sends it, as a repeat."""
    with receiving() as receiver:
        database = _prepare(tmp_path, receiver.url)
        with _gateway(tmp_path) as first:
            receiver.before_answer = first.kill
            assert first.wait(PATIENCE_S) == -signal.SIGKILL
        seen = {one["id"] for one in receiver.messages}
        keys, owed = asyncio.run(_outbox(database, expire=True))
        assert "error_rate" in keys
        assert seen <= set(owed)
        assert not all(owed.values()), "it died before it could note what it had sent"
        with _gateway(tmp_path) as second:
            deadline = time.monotonic() + PATIENCE_S
            while not all(asyncio.run(_outbox(database))[1].values()):
                assert second.poll() is None, (tmp_path / "log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.05)
        again, _ = asyncio.run(_outbox(database))
        assert sorted(again) == sorted(set(keys)), "each found once, however often looked for"
        for delivery in owed:
            told = [one for one in receiver.messages if one["id"] == delivery]
            assert told, "none is lost"
            assert told[-1]["duplicate_possible"] is (told[-1]["attempt"] > 1)
            assert len(told) == 1 or told[-1]["duplicate_possible"], "a repeat says so"
