"""Roles of admin keys, restrictions of keys, and the audit log of both."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import BackendSettings, ServerSettings
from gateway.settings.prices import PriceSettings
from tests.gateway.api.test_auth import KEYED, bearer, make_key
from tests.gateway.serving import Gateway, decode, gateway, settings

ADMIN = bearer("the-admin-key")


@pytest.fixture(autouse=True)
def admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin key comes from the environment."""
    monkeypatch.setenv("TEST_ADMIN_KEY", "the-admin-key")


async def acts(served: Gateway, **query: str) -> list[dict[str, Any]]:
    """The audit log, newest first."""
    answer = await served.client.get("/admin/audit", params=query, headers=ADMIN)
    found: list[dict[str, Any]] = decode(answer)["acts"]
    return found


async def admin_of(served: Gateway, role: str, team: str = "search") -> dict[str, str]:
    """Headers of an admin key with a role."""
    return bearer((await make_key(served, team=team, scopes=["admin"], role=role))["key"])


async def test_admin_without_the_scope_is_403_and_an_audit_row(tmp_path: Path) -> None:
    """Whatever was tried stands in the log with who tried it, and nothing has changed."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        made = await make_key(served)
        mine = bearer(made["key"])
        for method, path in (
            ("GET", "/admin/keys"),
            ("POST", "/admin/keys"),
            ("DELETE", f"/admin/keys/{made['id']}"),
            ("GET", "/admin/audit"),
            ("POST", "/admin/budgets"),
            ("DELETE", "/admin/cache"),
        ):
            answer = await served.client.request(method, path, headers=mine, json={"team": "x"})
            assert (answer.status_code, decode(answer)["error"]["code"]) == (403, "forbidden"), path
            newest = (await acts(served))[0]
            assert (newest["actor"], newest["team"]) == (made["id"], "search")
            assert (newest["action"], newest["outcome"]) == (f"{method} {path}"[:64], "refused")
            assert newest["address"] == "127.0.0.1"
        assert (await served.chat(headers=mine)).status_code == 200, "the key was not revoked"


async def test_acts_are_written_without_secrets(tmp_path: Path) -> None:
    """Done and failed acts have rows; no secret is in any of them."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        made = await make_key(served, scopes=["inference", "reports"])
        rotated = await served.client.post(
            f"/admin/keys/{made['id']}/rotate", json={"overlap_s": 5}, headers=ADMIN
        )
        missing = await served.client.delete("/admin/keys/nobody", headers=ADMIN)
        assert missing.status_code == 404
        bad = await served.client.post(
            "/admin/budgets", json={"scope": "global", "limit_usd": "-1"}, headers=ADMIN
        )
        assert bad.status_code == 400
        found = await acts(served)
        assert [(act["action"], act["outcome"]) for act in found] == [
            ("budgets.set", "failed"),
            ("keys.revoke", "failed"),
            ("keys.rotate", "done"),
            ("keys.create", "done"),
        ]
        assert {act["actor"] for act in found} == {"admin"}
        assert found[2]["target"] == made["id"]
        assert made["key"] not in str(found)
        assert decode(rotated)["key"] not in str(found)
        assert [act["action"] for act in await acts(served, action="keys.create")] == [
            "keys.create"
        ]


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("owner", {"keys", "keys+", "budgets", "budgets+", "cache", "audit", "teams+"}),
        ("operator", {"keys", "budgets", "budgets+", "cache", "audit"}),
        ("auditor", {"keys", "budgets", "cache", "audit"}),
        ("team", {"keys", "keys+", "budgets"}),
    ],
)
async def test_roles_say_what_an_admin_may_do(tmp_path: Path, role: str, allowed: set[str]) -> None:
    """owner all, operator no keys, auditor nothing but looking, team its own."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        mine = await admin_of(served, role)
        budget = {"scope": "global", "limit_usd": "1"}
        tries = {
            "keys": ("GET", "/admin/keys", None),
            "keys+": ("POST", "/admin/keys", {"team": "search"}),
            "budgets": ("GET", "/admin/budgets", None),
            "budgets+": ("POST", "/admin/budgets", budget),
            "cache": ("GET", "/admin/cache", None),
            "audit": ("GET", "/admin/audit", None),
            "teams+": ("POST", "/admin/teams", {"name": "new"}),
        }
        may = set()
        for name, (method, path, body) in tries.items():
            answer = await served.client.request(method, path, json=body, headers=mine)
            assert answer.status_code in (200, 201, 403), (name, answer.text)
            if answer.status_code != 403:
                may.add(name)
        assert may == allowed


async def test_team_admin_reaches_its_own_team_only(tmp_path: Path) -> None:
    """Its keys, users and their budgets; not the team's own budget, nor more power than it has."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        mine = await admin_of(served, "team")
        theirs = await make_key(served, team="ads")

        async def post(path: str, **body: Any) -> int:
            answer = await served.client.post(path, json=body, headers=mine)
            return int(answer.status_code)

        listed = decode(await served.client.get("/admin/keys", headers=mine))["keys"]
        assert {key["team"] for key in listed} == {"search"}
        gone = await served.client.delete(f"/admin/keys/{theirs['id']}", headers=mine)
        assert gone.status_code == 403
        assert await post("/admin/keys", team="ads") == 403
        assert await post("/admin/keys", team="search", scopes=["admin"]) == 403
        assert await post("/admin/keys", team="search", scopes=["reports"]) == 403
        assert await post("/admin/keys", team="search", scopes=["admin"], role="team") == 201
        assert await post("/admin/users", name="ann", team="search") == 201
        assert await post("/admin/users", name="bob", team="ads") == 403
        assert await post("/admin/budgets", scope="user:ann", limit_usd="1") == 201
        assert await post("/admin/budgets", scope="team:search", limit_usd="1") == 403
        assert await post("/admin/budgets", scope=f"key:{theirs['id']}", limit_usd="1") == 403
        refused = [act for act in await acts(served) if act["outcome"] == "refused"]
        assert len(refused) == 7


async def test_keys_are_restricted_to_endpoints_models_and_policies(tmp_path: Path) -> None:
    """Outside of them: 403 forbidden; auto is narrowed; /v1/models lists what may be asked."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        (tmp_path / "policies" / "other.toml").write_text('[default]\nroute = "base"\n')
        only = {"endpoints": ["chat/completions"], "models": ["base"], "policies": ["other"]}
        mine = bearer((await make_key(served, only=only))["key"])
        assert (await served.chat(headers=mine)).headers["x-headgate-backend"] == "base"
        for model in ("small", "backend:small", "policy:test"):
            refused = await served.chat(model=model, headers=mine)
            assert (refused.status_code, decode(refused)["error"]["code"]) == (403, "forbidden"), (
                model
            )
        assert (await served.chat(model="policy:other", headers=mine)).status_code == 200
        asks = {**mine, "x-headgate-policy": "test"}
        assert (await served.chat(headers=asks)).status_code == 403
        body = b'{"model": "auto", "input": "x"}'
        assert (await served.post("/v1/embeddings", body, **mine)).status_code == 403
        assert (await served.client.post("/tokenize", json={}, headers=mine)).status_code == 403
        listed = decode(await served.client.get("/v1/models", headers=mine))["data"]
        names = {model["id"] for model in listed}
        assert {"base", "policy:other"} <= names
        assert not {"small", "policy:test"} & names


async def test_keys_are_restricted_to_networks(tmp_path: Path) -> None:
    """Elsewhere the key is 403; proxies are believed only where the configuration trusts them."""
    behind = ServerSettings(
        auth="keys", admin_key_env="TEST_ADMIN_KEY", trusted_proxies=["127.0.0.0/8"]
    )
    only = {"networks": ["203.0.113.0/24"]}
    cases = (
        (KEYED, "203.0.113.9", 403),
        (behind, "203.0.113.9", 200),
        (behind, "203.0.113.9, 127.0.0.2", 200),
        (behind, "203.0.113.9, 198.51.100.1", 403),
        (behind, "", 403),
        (behind, "nonsense", 403),
    )
    for number, (server, forwarded, status) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with gateway(settings(folder, server=server)) as served:
            mine = bearer((await make_key(served, only=only))["key"])
            answer = await served.chat(headers={**mine, "x-forwarded-for": forwarded})
            assert answer.status_code == status, (forwarded, answer.text)


async def test_key_of_a_user_speaks_for_him_alone(tmp_path: Path) -> None:
    """Whatever `user` the body names, requests are the owner's, and count in his budget."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        made = {"name": "ann", "team": "search"}
        await served.client.post("/admin/users", json=made, headers=ADMIN)
        mine = bearer((await make_key(served, user="ann"))["key"])
        answer = await served.chat(user="somebody-else", headers=mine)
        assert (await served.settled(answer)).request.user == "ann"
        gone = await served.client.delete("/admin/users/ann", headers=ADMIN)
        assert decode(gone)["keys_revoked"] == 1
        assert (await served.chat(headers=mine)).status_code == 401


async def test_teams_and_keys_change_at_once(tmp_path: Path) -> None:
    """New limits of a key and of its team hold from the next request on."""
    async with gateway(settings(tmp_path, server=KEYED)) as served:
        made = await make_key(served)
        mine = bearer(made["key"])
        assert "x-ratelimit-limit-requests" not in (await served.chat(headers=mine)).headers
        path = f"/admin/keys/{made['id']}"
        limits = {"limits": {"requests_per_minute": 50}}
        assert (await served.client.patch(path, json=limits, headers=ADMIN)).status_code == 200
        assert (await served.chat(headers=mine)).headers["x-ratelimit-limit-requests"] == "50"
        limits = {"limits": {"requests_per_minute": 4}}
        answer = await served.client.patch("/admin/teams/search", json=limits, headers=ADMIN)
        assert answer.status_code == 200
        assert (await served.chat(headers=mine)).headers["x-ratelimit-limit-requests"] == "4"
        unknown = await served.client.patch("/admin/teams/nobody", json=limits, headers=ADMIN)
        assert unknown.status_code == 404


async def test_a_new_budget_counts_what_was_answered_a_moment_ago(tmp_path: Path) -> None:
    """The answer is on its way into the database while the budget is set, and counts in it."""
    price = PriceSettings(input_usd_per_mtok=Decimal(4))
    priced = BackendSettings(name="small", kind="echo", model="echo", price=price)
    async with gateway(settings(tmp_path, priced, server=KEYED)) as served:
        answer = await served.chat(headers=bearer((await make_key(served))["key"]))
        body = {"scope": "team:search", "limit_usd": "1"}
        made = decode(await served.client.post("/admin/budgets", json=body, headers=ADMIN))
        assert made["spent_usd"] == answer.headers["x-headgate-cost-usd"] > "0"
