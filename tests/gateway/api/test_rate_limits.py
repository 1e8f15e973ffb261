"""Rate limits over HTTP: headers, 429, cache hits, and what is counted afterwards."""

from pathlib import Path

from tests.gateway.api.test_auth import bearer
from tests.gateway.serving import decode, events, gateway, settings


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
