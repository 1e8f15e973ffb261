"""What a cut-off request used is booked even when its engine says so late."""

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest

from backends.contract import Completion, GenerateRequest, Usage
from backends.echo import EchoBackend
from gateway.settings import BackendSettings, CacheSettings, SemanticSettings
from gateway.settings.prices import PriceSettings
from tests.gateway.serving import gateway, settings


class BusyEcho(EchoBackend):
    """Too busy at first to say what a request used."""

    asked = 0

    async def usage_of(self, request_id: str) -> Usage | None:
        """Nothing the first times."""
        self.asked += 1
        return None if self.asked <= 4 else await super().usage_of(request_id)


async def test_usage_that_is_told_late_becomes_a_further_charge(tmp_path: Path) -> None:
    """The request's row stands at once, its engine time follows; tokens are counted once."""
    small = BusyEcho("small", tokens=500, token_delay_s=0.02, ns_per_token=1_000_000)
    engine = BackendSettings(name="small", model="bundled:small", tier="small")
    async with gateway(settings(tmp_path, engine), {"small": small}) as served:
        answer = await served.chat(stream=True, headers={"x-headgate-deadline-ms": "300"})
        before = await served.settled(answer)
        assert before.request.outcome == "error"
        assert [charge.machine_ns for charge in before.charges] == [0]
        async with asyncio.timeout(10):
            await served.pipeline.late_charges.settled()
        await served.parts.ledger.flush()
        after = await served.parts.ledger.find(before.request.request_id)
        assert after is not None
        usage = await small.usage_of(before.request.request_id)
        assert usage is not None
        assert usage.headgate is not None
        first, late = after.charges
        assert (first.seq, first.machine_ns, first.cost_nano_usd) == (0, 0, 0)
        assert late.machine_ns == usage.headgate.billable_ns > 0
        assert late.cost_nano_usd > 0
        assert (late.prompt_tokens, late.completion_tokens) == (0, 0)
        assert served.pipeline.late_charges.unknown == 0


class SlowEcho(EchoBackend):
    """An encoder that takes longer than an answer."""

    async def generate(self, request: GenerateRequest) -> Completion:
        """After a second."""
        await asyncio.sleep(1.0)
        return await super().generate(request)


@pytest.mark.parametrize("headers", [{}, {"x-headgate-cache": "refresh"}])
async def test_encoder_that_is_late_is_charged_late(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    """The question's encoding outlives its answer, or is for the next one: its charge follows."""
    price = PriceSettings(input_usd_per_mtok=Decimal(1000))
    chosen = settings(
        tmp_path,
        BackendSettings(name="small", kind="echo", model="echo", tier="small", price=price),
        BackendSettings(name="words", kind="encoder", model="words", price=price),
        cache=CacheSettings(
            redis="memory", semantic=SemanticSettings(enabled=True, encoder="words", timeout_s=0.1)
        ),
    )
    made = {"small": EchoBackend("small"), "words": SlowEcho("words")}
    async with gateway(chosen, made) as served:
        answer = await served.chat("how late is it?", temperature=0, headers=headers)
        before = await served.settled(answer)
        assert [charge.kind for charge in before.charges] == ["answer"]
        async with asyncio.timeout(10):
            await served.pipeline.late_charges.settled()
        await served.parts.ledger.flush()
        after = await served.parts.ledger.find(before.request.request_id)
        assert after is not None
        assert [(charge.kind, charge.backend) for charge in after.charges] == [
            ("answer", "small"),
            ("encoder", "words"),
        ]
        assert after.charges[1].cost_nano_usd > 0
