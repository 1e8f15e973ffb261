"""Who gets in: open and keyed gateways, scopes, the admin key."""

from pathlib import Path
from typing import Any

import pytest

from gateway.settings import ServerSettings
from tests.gateway.serving import Gateway, decode, gateway, settings

KEYED = ServerSettings(auth="keys", admin_key_env="TEST_ADMIN_KEY")


@pytest.fixture(autouse=True)
def admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin key comes from the environment."""
    monkeypatch.setenv("TEST_ADMIN_KEY", "the-admin-key")


def bearer(key: str) -> dict[str, str]:
    """The header that SDKs send."""
    return {"authorization": f"Bearer {key}"}


async def make_key(served: Gateway, *, team: str = "search", **fields: Any) -> dict[str, Any]:
    """A fresh key by the admin API."""
    answer = await served.client.post(
        "/admin/keys", json={"team": team, **fields}, headers=bearer("the-admin-key")
    )
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = decode(answer)
    return made


async def test_keyed_gateway_lets_only_keys_in(tmp_path: Path) -> None:
    """Without a key, or with an unknown one, all but the health paths are 401."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        for path in ("/v1/models", "/metrics", "/admin/keys", "/reports/costs", "/schema", "/"):
            assert (await served.client.get(path)).status_code == 401, path
        for path in ("/health", "/health/live", "/health/ready"):
            assert (await served.client.get(path)).status_code == 200, path
        for headers in (None, bearer("hg-unknown"), bearer("sk-other")):
            answer = await served.chat(headers=headers)
            assert answer.status_code == 401
            assert decode(answer)["error"]["code"] == "invalid_api_key"


async def test_key_says_team_and_key_in_the_ledger(tmp_path: Path) -> None:
    """A request made with a key is booked on its team and id; a revoked key stays out."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        made = await make_key(served)
        answer = await served.chat(headers=bearer(made["key"]))
        assert answer.status_code == 200
        record = (await served.settled(answer)).request
        assert (record.team, record.key) == ("search", made["id"])
        shown = await served.client.get("/admin/keys", headers=bearer("the-admin-key"))
        assert made["key"] not in shown.text
        gone = await served.client.delete(
            f"/admin/keys/{made['id']}", headers=bearer("the-admin-key")
        )
        assert gone.status_code == 200
        served.parts.keys._cache.clear()
        assert (await served.chat(headers=bearer(made["key"]))).status_code == 401


async def test_scopes_say_which_paths(tmp_path: Path) -> None:
    """An inference key may ask, but neither read reports nor administrate; reports may not ask."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        asks = bearer((await make_key(served))["key"])
        reads = bearer((await make_key(served, scopes=["reports"]))["key"])
        assert (await served.chat(headers=asks)).status_code == 200
        for path in ("/reports/costs", "/metrics", "/admin/budgets"):
            refused = await served.client.get(path, headers=asks)
            assert (refused.status_code, decode(refused)["error"]["code"]) == (403, "forbidden")
        assert (await served.client.get("/reports/costs", headers=reads)).status_code == 200
        refused = await served.chat(headers=reads)
        assert (refused.status_code, decode(refused)["error"]["code"]) == (403, "forbidden")


async def test_requests_of_other_teams_stay_hidden(tmp_path: Path) -> None:
    """GET /requests/{id} shows a key its own team's requests only, one for reports everybody's."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        mine = bearer((await make_key(served, team="mine"))["key"])
        theirs = bearer((await make_key(served, team="theirs"))["key"])
        answer = await served.chat(headers=mine)
        path = f"/requests/{answer.headers['x-headgate-request-id']}"
        assert (await served.client.get(path, headers=mine)).status_code == 200
        assert (await served.client.get(path, headers=theirs)).status_code == 404
        reports = bearer((await make_key(served, team="theirs", scopes=["reports"]))["key"])
        assert (await served.client.get(path, headers=reports)).status_code == 200


async def test_teams_do_not_share_cached_answers(tmp_path: Path) -> None:
    """The same question of another team is a miss."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        mine = bearer((await make_key(served, team="mine"))["key"])
        theirs = bearer((await make_key(served, team="theirs"))["key"])
        await served.chat(temperature=0, headers=mine)
        assert served.parts.caches is not None
        await served.parts.caches.settled()
        answer = await served.chat(temperature=0, headers=theirs)
        assert answer.headers["x-headgate-cache"] == "miss"
        answer = await served.chat(temperature=0, headers=mine)
        assert answer.headers["x-headgate-cache"] == "exact"


async def test_open_gateway_honours_its_keys_and_ignores_others(tmp_path: Path) -> None:
    """With auth = "open" a key of ours still says the team; anything else is anonymous."""
    async with gateway(settings(tmp_path)) as served:
        made = decode(await served.client.post("/admin/keys", json={"team": "search"}))
        answer = await served.chat(headers=bearer(made["key"]))
        assert (await served.settled(answer)).request.team == "search"
        for key in ("sk-anything", "hg-unknown"):
            answer = await served.chat(headers=bearer(key))
            assert answer.status_code == 200
            assert (await served.settled(answer)).request.team == "anonymous"
