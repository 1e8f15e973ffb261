"""Reports for pages: asked once for all readers, fresh within seconds, never older than told."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.dashboard.questions import FRESH_S, STALE_S, Questions
from gateway.ledger.machine_time import MachineClock
from gateway.ledger.report_query import ReportError
from tests.gateway.dashboard import scenes
from tests.gateway.serving import Gateway, gateway
from tests.gateway.test_pipeline import priced


async def asked(served: Gateway, questions: Questions) -> int:
    """Requests of today's totals."""
    await served.parts.ledger.flush()
    rows = await questions.rows(since="2020-01-01")
    return int(rows[0]["requests"])


async def test_answers_are_shared_then_refreshed_and_never_too_old(tmp_path: Path) -> None:
    """One look-up for readers at once; an old answer only while the new one is made, and only
    up to STALE_S."""
    now = 0.0
    async with gateway(priced(tmp_path)) as served:
        questions = Questions(served.parts, clock=lambda: now)
        both = await asyncio.gather(asked(served, questions), asked(served, questions))
        assert list(both) == [0, 0]
        await served.settled(await served.chat("one"))
        assert await asked(served, questions) == 0, "within FRESH_S it is remembered"
        now += FRESH_S
        assert await asked(served, questions) == 0, "while the fresh one is on its way"
        for _ in range(1000):
            if await asked(served, questions):
                break
            await asyncio.sleep(0.001)
        await served.settled(await served.chat("two"))
        now += STALE_S
        assert await asked(served, questions) == 2, "too old: readers wait for the new one"


@pytest.mark.parametrize("question", [{"group_by": "colour"}, {"since": "soon"}])
async def test_refusals_are_not_remembered(tmp_path: Path, question: dict[str, Any]) -> None:
    """Every reader of an impossible question hears why."""
    async with gateway(priced(tmp_path)) as served:
        questions = Questions(served.parts)
        for _ in range(2):
            with pytest.raises(ReportError):
                await questions.rows(**question)


async def test_nobody_waits_for_a_forecast(tmp_path: Path) -> None:
    """None while it is found out; then it is there, and shown on the overview."""
    async with gateway(scenes.settings_of(tmp_path), scenes.backends_of("normal")) as served:
        await scenes.fill(served.parts.engine, "normal", now=time.time())
        questions = Questions(served.parts, not_now_s=0.0)
        assert await questions.month_end("UTC") is None
        for _ in range(5000):
            found = await questions.month_end("UTC")
            if found is not None:
                break
            await asyncio.sleep(0.001)
        assert found is not None
        assert found["expected_usd"] is not None


async def test_machines_that_mostly_idle_are_named(tmp_path: Path) -> None:
    """Ten hours of a machine that hardly worked: told in words, once that is found out."""
    async with gateway(scenes.settings_of(tmp_path), scenes.backends_of("normal")) as served:
        clock, hour_ns = MachineClock(served.parts.engine), 3_600 * 10**9
        end = time.time_ns() // hour_ns * hour_ns
        for begin in range(end - 10 * hour_ns, end, hour_ns):
            await clock.record("rack-1", "small", "run", begin, begin + hour_ns)
            await clock.record("rack-1", "", "idle", begin, begin + hour_ns, hour_ns * 97 // 100)
        questions = Questions(served.parts, not_now_s=0.0)
        assert await questions.idle_hints("UTC") == []
        for _ in range(5000):
            hints = await questions.idle_hints("UTC")
            if hints:
                break
            await asyncio.sleep(0.001)
        assert [hint[:22] for hint in hints] == ["rack-1 was 3% busy bet"]
