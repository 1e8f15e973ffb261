"""The ledger's traffic as a load, and its charges as measurements."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.database import open_engine
from gateway.ledger.repository import Repository
from gateway.ledger.tables import metadata
from gateway.planner.errors import PlanError
from gateway.planner.past import charged_work, traffic
from gateway.planner.shapes import shape_of
from gateway.planner.steps import PRIOR, Work, fit, units
from gateway.settings import BackendSettings
from tests.gateway.ledger.samples import NOW, charge, settlement

ALL = (0, 2**62)
SMALL = BackendSettings(name="small", kind="engine", model="bundled:small")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    opened = open_engine(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}")
    async with opened.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield opened
    await opened.dispose()


async def test_traffic_is_what_backends_answered_at_the_rate_of_the_fullest_hour(
    engine: AsyncEngine,
) -> None:
    """Cached and failed requests are no load; lengths, gaps and prefix share are the rows'."""
    rows = [
        settlement(
            f"r{number}",
            started_at=NOW + (3600 if number > 2 else 0) + 10 * number,
            prompt_tokens=100 + number,
            cached_prompt_tokens=50,
            completion_tokens=20,
        )
        for number in range(9)
    ]
    rows.append(settlement("hit", cache="exact", started_at=NOW + 1))
    rows.append(settlement("none", completion_tokens=0, started_at=NOW + 1))
    rows.append(settlement("other", backend="base", started_at=NOW + 3605))
    await Repository(engine).write(rows)
    async with engine.connect() as connection:
        work = await traffic(connection, *ALL, backend="small")
        everything = await traffic(connection, *ALL)
        with pytest.raises(PlanError, match="0 requests answered by 'nobody'"):
            await traffic(connection, *ALL, backend="nobody")
    assert work.requests_per_s == pytest.approx(6 / 3600)
    assert work.gaps_s == pytest.approx((10.0,) * 5)
    assert sorted(work.lengths) == [(100 + number, 20) for number in range(9)]
    assert work.prefix_share == pytest.approx(450 / sum(100 + n for n in range(9)))
    assert "the ledger: 9 requests" in work.source
    assert len(everything.lengths) == 10


async def test_charges_give_the_step_times_that_made_them(engine: AsyncEngine) -> None:
    """Requests alone and four at once, charged by known costs: the fit finds the times again."""
    shape = shape_of("bundled:small")
    costs = units(shape, "int8") @ (2.0 * np.array(PRIOR["cpu"]))
    rows = []
    for number in range(40):
        batch = 1 if number < 20 else 4
        prompt, made = 60 + 17 * number % 300, 10 + 7 * number % 50
        prefill = Work(1 / batch, 0, 0, prompt, prompt**2 / 2)
        attended = (made - 1) * (prompt + made / 2)
        decode = Work((made - 1) / batch, made - 1, attended, prompts=1)
        at = NOW + (number if batch == 1 else 100 + number // 4)
        name = f"r{number}"
        answer = charge(
            name,
            at=at + 0.5,
            prompt_tokens=prompt,
            completion_tokens=made,
            prefill_ns=round(1e9 * float(np.array(prefill) @ costs)),
            decode_ns=round(1e9 * float(np.array(decode) @ costs)),
        )
        rows.append(settlement(name, charges=(answer,), started_at=at))
    await Repository(engine).write(rows)
    async with engine.connect() as connection:
        measured = await charged_work(connection, *ALL, [SMALL])
        with pytest.raises(PlanError, match="no charges of our own engines"):
            await charged_work(connection, *ALL, [])
    model = fit(measured, shape, "int8", "ledger")
    assert model.error < 0.02
    other = Work(20, 100, 30_000, 200, 20_000, 1)
    assert model.seconds(other) == pytest.approx(float(np.array(other) @ costs), rel=0.03)
