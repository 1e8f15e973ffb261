"""What a cascade may spend is held before its first rung is asked; what its rungs do is counted."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from backends.echo import EchoBackend
from gateway.ledger.money import usd_text
from tests.gateway.dispatch.climbing import SURE, UNSURE, echoes, ladder
from tests.gateway.serving import Gateway, decode, gateway

ANSWER_TOKENS = 4
REQUESTS = 12


async def limit(served: Gateway, nano_usd: int) -> None:
    body = {"scope": "global", "window": "lifetime", "limit_usd": usd_text(nano_usd)}
    answer = await served.client.post("/admin/budgets", json=body)
    assert answer.status_code == 201, answer.text


def calls(backends: dict[str, EchoBackend]) -> int:
    return sum(len(backend.requests) for backend in backends.values())


async def alone(folder: Path, accept: str) -> tuple[int, int]:
    """(nano-dollars, calls) of one request without a budget."""
    backends: Any = echoes()
    async with gateway(ladder(folder, accept), backends) as served:
        found = await served.settled(await served.chat("question 0", max_tokens=ANSWER_TOKENS))
        return found.request.cost_nano_usd, calls(backends)


@pytest.mark.parametrize(
    ("accept", "last"),
    [
        ("judge = 'logprob', min = 0.5", "high"),
        ("judge = 'consistency', min = 0.9, n = 4", "low"),
        ("judge = 'backend:high', min = 1.0", "high"),
    ],
)
async def test_hard_budget_holds_all_rungs_and_judges(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, accept: str, last: str
) -> None:
    """Many at once: never a nano-dollar over the limit in the SQL ledger; whoever could not have
    paid for every rung and judge is refused before anybody is asked."""
    cost, calls_each = await alone(tmp_path_factory.mktemp("alone"), accept)
    allowed = cost * REQUESTS // 2
    backends: Any = echoes()
    async with gateway(ladder(tmp_path, accept), backends) as served:
        await limit(served, allowed)
        answers = await asyncio.gather(
            *(served.chat(f"question {n}", max_tokens=ANSWER_TOKENS) for n in range(REQUESTS))
        )
        for _ in range(3):
            await served.parts.budgets.sync()
        (shown,) = decode(await served.client.get("/admin/budgets"))["budgets"]
        good = [answer for answer in answers if answer.status_code == 200]
        booked = [await served.settled(answer) for answer in good]
    assert {answer.status_code for answer in answers} == {200, 429}
    total = sum(row.request.cost_nano_usd for row in booked)
    assert Decimal(shown["spent_usd"]) == Decimal(total) / 10**9
    assert total <= allowed
    assert Decimal(shown["overrun_usd"]) == Decimal(shown["reserved_usd"]) == 0
    assert {row.request.backend for row in booked} == {last}, "nobody was cut off on the way"
    assert calls(backends) == calls_each * len(good), "the refused ones asked nobody"


@pytest.mark.parametrize(("low", "counted"), [(SURE, {"accepted"}), (UNSURE, {"rejected", "last"})])
async def test_rungs_are_counted_by_policy(tmp_path: Path, low: float, counted: set[str]) -> None:
    """`headgate_cascade_rungs_total{policy, verdict}`: one for each rung that was asked."""
    async with gateway(ladder(tmp_path), echoes(low=low)) as served:
        await served.chat()
        lines = (await served.client.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith("headgate_cascade_rungs_total{")]
    assert set(found) == {
        f'headgate_cascade_rungs_total{{policy="test",verdict="{verdict}"}} 1.0'
        for verdict in counted
    }
