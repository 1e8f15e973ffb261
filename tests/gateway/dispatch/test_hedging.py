"""Two calls for one short request: who answers, what is paid, what is left running."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from backends.echo import EchoBackend
from gateway.dispatch.hedging import MIN_SAMPLES, SAMPLES, Latencies
from gateway.settings import BackendSettings, CacheSettings, PriceSettings, RoutingSettings
from tests.gateway.serving import Gateway, decode, events, gateway, settings, text_of

PRICE = PriceSettings(input_usd_per_mtok=Decimal(1000), output_usd_per_mtok=Decimal(2000))
POLICY = """
[default]
route = "small"
fallbacks = ["base"]
hedge = { percentile = 0.9, max_answer_tokens = 64 }
"""


def hedged(folder: Path) -> Any:
    """Settings whose policy hedges short requests."""
    (folder / "policies").mkdir()
    (folder / "policies" / "hedged.toml").write_text(POLICY)
    made = settings(
        folder,
        *(
            BackendSettings(name=name, kind="echo", model=name, tier=name, price=PRICE)
            for name in ("small", "base")
        ),
        cache=CacheSettings(redis="memory"),
    )
    routing = RoutingSettings(policy="hedged", policy_dirs=[str(folder / "policies")])
    return type(made)(
        **{n: getattr(made, n) for n in made.__struct_fields__} | {"routing": routing}
    )


def usually(served: Gateway, seconds: float) -> None:
    """As if `small` had always taken that long."""
    for stream in (False, True):
        for _ in range(MIN_SAMPLES):
            served.pipeline.attempts.hedging.latencies.observe("small", stream, seconds)


@pytest.mark.parametrize("stream", [False, True])
async def test_slow_call_is_overtaken_and_both_are_paid(tmp_path: Path, stream: bool) -> None:
    """The second backend answers; the first is cancelled and charged as a hedge, once."""
    small = EchoBackend("small", delay_s=30)
    async with gateway(hedged(tmp_path), {"small": small, "base": EchoBackend("base")}) as served:
        usually(served, 0.01)
        answer = await served.chat("hello there", max_tokens=8, stream=stream)
        body = events(answer) if stream else decode(answer)
        text = text_of(body) if stream else body["choices"][0]["message"]["content"]
        assert text == "You said: hello there"
        settlement = await served.settled(answer)
        record, charges = settlement.request, settlement.charges
        assert (record.backend, record.outcome) == ("base", "ok")
        kinds = sorted((charge.kind, charge.backend) for charge in charges)
        assert kinds == [("answer", "base"), ("hedge", "small")]
        assert sorted(charge.seq for charge in charges) == [0, 1]
        assert all(charge.prompt_tokens > 0 for charge in charges)
        assert record.cost_nano_usd == sum(charge.cost_nano_usd for charge in charges)
        told = {attempt.backend: attempt.error for attempt in record.attempts}
        assert told == {"small": "base answered first", "base": None}
        assert (await small.probe()).running == 0
        assert served.parts.registry.in_flight("small") == 0
        assert served.parts.queues.of("base").running == 0
        assert served.parts.registry.state()["small"]["breaker"] == "closed"


async def test_quick_call_is_not_hedged(tmp_path: Path) -> None:
    """One call, one charge; nor are long requests, capped ones, and backends not known yet."""
    made = {"small": EchoBackend("small", delay_s=0.05), "base": EchoBackend("base")}
    async with gateway(hedged(tmp_path), made) as served:
        await served.chat("not known yet", max_tokens=8)
        usually(served, 5.0)
        await served.chat("hello", max_tokens=8)
        for _ in range(SAMPLES):
            usually(served, 0.001)
        await served.chat("no max_tokens")
        await served.chat("long answer", max_tokens=500)
        await served.chat("word " * 3000, max_tokens=8)
        capped = {"x-headgate-max-cost-usd": "100"}
        await served.chat("capped", max_tokens=8, headers=capped)
        assert len(made["small"].requests) == 6
        assert not made["base"].requests


async def test_failure_of_one_leaves_the_other(tmp_path: Path) -> None:
    """The second call fails, the slow one still answers; nothing is paid for the failure."""
    made = {
        "small": EchoBackend("small", delay_s=0.1),
        "base": EchoBackend("base", fault="refuse"),
    }
    async with gateway(hedged(tmp_path), made) as served:
        usually(served, 0.01)
        served.parts.registry._states["base"].health = await made["small"].probe()
        answer = await served.chat(max_tokens=8)
        settlement = await served.settled(answer)
        assert settlement.request.backend == "small"
        assert [charge.kind for charge in settlement.charges] == ["answer"]


async def test_client_that_leaves_ends_both_calls(tmp_path: Path) -> None:
    """Both are cancelled and booked, one of them as the hedge."""
    made = {name: EchoBackend(name, delay_s=30) for name in ("small", "base")}
    async with gateway(hedged(tmp_path), made) as served:
        usually(served, 0.01)
        headers = {"x-headgate-deadline-ms": "100"}
        answer = await served.chat(max_tokens=8, headers=headers)
        assert answer.status_code == 504
        settlement = await served.settled(answer)
        assert [(await backend.probe()).running for backend in made.values()] == [0, 0]
        kinds = sorted(charge.kind for charge in settlement.charges)
        assert kinds == ["answer", "hedge"]


async def test_reservation_covers_both_calls(tmp_path: Path) -> None:
    """What a hedged request holds of its budget is enough for two answers."""
    made = {name: EchoBackend(name, delay_s=0.2) for name in ("small", "base")}
    held = []
    async with gateway(hedged(tmp_path), made) as served:
        body = {"scope": "global", "window": "lifetime", "limit_usd": "1000"}
        assert (await served.client.post("/admin/budgets", json=body)).status_code == 201
        for headers in (None, {"x-headgate-max-cost-usd": "100"}):
            asked = asyncio.create_task(served.chat("hi", max_tokens=8, headers=headers))
            while not sum(len(backend.requests) for backend in made.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            (file,) = (tmp_path / "state" / "reservations").glob("*")
            held.append(json.loads(file.read_text().splitlines()[-1])["nano_usd"])
            await asked
            made["small"].requests.clear()
    assert held[0] == 2 * held[1] > 0


def test_percentile_follows_the_latest_answers() -> None:
    """Too few say nothing; old ones are forgotten."""
    latencies = Latencies()
    for _ in range(MIN_SAMPLES - 1):
        latencies.observe("a", False, 1.0)
    assert latencies.percentile("a", False, 0.9) is None
    latencies.observe("a", False, 9.0)
    assert latencies.percentile("a", False, 0.9) == 1.0
    assert latencies.percentile("a", True, 0.9) is None
    for _ in range(SAMPLES):
        latencies.observe("a", False, 2.0)
    assert latencies.percentile("a", False, 0.5) == latencies.percentile("a", False, 0.99) == 2.0
