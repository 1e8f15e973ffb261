"""Rate limits over HTTP: headers, 429, cache hits, and what is counted afterwards."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

from backends.contract import Completion, GenerateRequest
from backends.echo import EchoBackend
from gateway.settings import BackendSettings, LimitSettings, PriceSettings
from tests.gateway.api.test_auth import bearer
from tests.gateway.serving import Gateway, decode, events, gateway, settings


class HeldBackend(EchoBackend):
    """Answers nobody before it is let."""

    def __init__(self, name: str, capacity: int) -> None:
        super().__init__(name, capacity=capacity)
        self.go = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> Completion:
        answer = await super().generate(request)
        await self.go.wait()
        return answer

    async def held(self, waiting: int, served: Gateway) -> None:
        """Until it is busy and so many wait for it."""
        for _ in range(60_000):
            if self.requests and served.parts.queues.waiting().get(self.name) == waiting:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("not within a minute")


async def test_key_over_its_limit_gets_429(tmp_path: Path) -> None:
    """The limit holds, says when to come back, and ends nobody else's requests."""
    async with gateway(settings(tmp_path)) as served:
        made = decode(
            await served.client.post(
                "/admin/keys", json={"team": "search", "limits": {"requests_per_minute": 2}}
            )
        )
        mine = bearer(made["key"])
        left = []
        for number in range(2):
            answer = await served.chat(f"question {number}", headers=mine)
            assert answer.status_code == 200
            left.append(answer.headers["x-ratelimit-remaining-requests"])
        assert left == ["1", "0"]
        refused = await served.chat("question 3", headers=mine)
        assert refused.status_code == 429
        assert decode(refused)["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) > 50
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        record = (await served.settled(refused)).request
        assert (record.outcome, record.status, record.cost_nano_usd) == ("refused", 429, 0)
        assert (await served.chat("question 3")).status_code == 200, "others go on"


async def test_limit_is_named_before_the_budget_and_holds_none_of_it(tmp_path: Path) -> None:
    """Money is held while the limits are asked: over both, the client hears of the limit; over one,
    nothing stays held, and a refusal for money says how the limits stand."""
    price = PriceSettings(output_usd_per_mtok=Decimal(1))
    echo = BackendSettings(name="small", kind="echo", model="e", tier="small", price=price)
    async with gateway(settings(tmp_path, echo)) as served:
        limits = {"requests_per_minute": 2}
        made = decode(
            await served.client.post("/admin/keys", json={"team": "search", "limits": limits})
        )
        budget = {"scope": "team:search", "limit_usd": "1", "window": "day"}
        assert (await served.client.post("/admin/budgets", json=budget)).status_code < 300
        mine = bearer(made["key"])
        assert (await served.chat("question 1", headers=mine)).status_code == 200
        small = {"x-headgate-max-cost-usd": "0.000000001"}
        refused = await served.chat("question 2", headers=mine | small)
        assert decode(refused)["error"]["code"] == "max_cost_exceeded"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        for asked in (mine, mine | small):
            refused = await served.chat("question 3", headers=asked)
            assert decode(refused)["error"]["code"] == "rate_limit_exceeded"
        held = [part.held for part in served.parts.budgets._leases.slices.values()]
        assert held == [0]


async def test_cache_hits_count_as_requests_without_tokens(tmp_path: Path) -> None:
    """Tokens held for an answer that the cache had are given back; refused ones never hit."""
    async with gateway(settings(tmp_path)) as served:
        limits = {"requests_per_minute": 3, "tokens_per_minute": 2000}
        made = decode(
            await served.client.post("/admin/keys", json={"team": "search", "limits": limits})
        )
        mine = bearer(made["key"])
        first = await served.chat(temperature=0, max_tokens=20, headers=mine)
        used = decode(first)["usage"]["total_tokens"]
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        second = await served.chat(temperature=0, max_tokens=20, headers=mine)
        assert second.headers["x-headgate-cache"] == "exact"
        third = await served.chat("other", temperature=0, max_tokens=20, headers=mine)
        held = 2000 - int(third.headers["x-ratelimit-remaining-tokens"])
        assert used < held < used + 100, "the hit's own tokens are not there"
        refused = await served.chat(temperature=0, max_tokens=20, headers=mine)
        assert refused.status_code == 429
        record = (await served.settled(refused)).request
        assert (record.cache, record.backend, record.saved_nano_usd) == ("off", None, 0)


async def test_streams_carry_the_headers_too(tmp_path: Path) -> None:
    """x-ratelimit-* stand on a stream's head."""
    async with gateway(settings(tmp_path)) as served:
        made = decode(
            await served.client.post(
                "/admin/keys", json={"team": "search", "limits": {"tokens_per_minute": 5000}}
            )
        )
        answer = await served.chat("hi", stream=True, headers=bearer(made["key"]))
        assert events(answer)
        assert answer.headers["x-ratelimit-limit-tokens"] == "5000"


async def test_teams_take_turns_at_a_full_backend(tmp_path: Path) -> None:
    """One team's flood does not hold up another's request, and a long wait asks the next one."""
    small = HeldBackend("small", capacity=0)
    chosen = settings(
        tmp_path,
        BackendSettings(name="small", kind="echo", model="e", tier="small", max_concurrency=1),
        BackendSettings(name="base", kind="echo", model="e", tier="base"),
    )
    async with gateway(chosen, {"small": small, "base": EchoBackend("base")}) as served:
        made = decode(await served.client.post("/admin/keys", json={"team": "quiet"}))
        flood = [
            asyncio.create_task(served.chat(f"flood {number}", model="small"))
            for number in range(20)
        ]
        await small.held(len(flood) - 1, served)
        quiet = served.chat("one question", model="small", headers=bearer(made["key"]))
        asked = asyncio.create_task(quiet)
        await small.held(len(flood), served)
        small.go.set()
        await asked
        place = [text_sent(request) for request in small.requests].index("one question")
        assert place <= 3
        answers = await asyncio.gather(*flood)
        assert {answer.status_code for answer in answers} == {200}


async def test_request_that_waited_too_long_is_answered_elsewhere(tmp_path: Path) -> None:
    """After queue_timeout_s the fallback answers, and the full backend's breaker stays closed."""
    small = EchoBackend("small", delay_s=0.5, capacity=0)
    chosen = settings(
        tmp_path,
        BackendSettings(name="small", kind="echo", model="e", tier="small", max_concurrency=1),
        BackendSettings(name="base", kind="echo", model="e", tier="base"),
        limits=LimitSettings(queue_timeout_s=0.05),
    )
    async with gateway(chosen, {"small": small, "base": EchoBackend("base")}) as served:
        answers = await asyncio.gather(*(served.chat(f"number {n}") for n in range(5)))
        names = sorted(answer.headers["x-headgate-backend"] for answer in answers)
        assert names == ["base"] * 4 + ["small"]
        about = served.parts.registry.state()["small"]
        assert about["breaker"] == "closed"
        refused = asyncio.create_task(served.chat("wait", model="small"))
        await asyncio.sleep(0.02)
        full = await served.chat("refused", model="small")
        assert full.status_code == 429
        assert "retry-after" in full.headers
        assert (await refused).status_code == 200


def text_sent(request: Any) -> str:
    """The question a backend was asked."""
    return str(request.body["messages"][0]["content"])
