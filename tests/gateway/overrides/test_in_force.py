"""Overrides as clients and operators see them, over HTTP."""

from pathlib import Path
from typing import Any

import pytest

from gateway.ledger.audit import list_acts
from tests.gateway.serving import Gateway, gateway, settings

OTHER = '[default]\nroute = "base"\n'


async def put(served: Gateway, slot: str, value: str = "", **fields: Any) -> Any:
    body = {"slot": slot, "value": value, **fields}
    return await served.client.put("/admin/overrides", json=body)


async def test_pinned_backend_answers_what_it_may(tmp_path: Path) -> None:
    """The rule is `pin`; denials, caps and other models that were named go on as always."""
    async with gateway(settings(tmp_path)) as served:
        assert (await served.chat()).headers["x-headgate-backend"] == "small"
        assert (await put(served, "pin.backend", "base", why="drill")).status_code == 200
        answer = await served.chat()
        assert answer.headers["x-headgate-backend"] == "base"
        assert answer.headers["x-headgate-rule"] == "pin"
        assert (await served.chat(model="small")).headers["x-headgate-backend"] == "small"
        capped = await served.chat("many words here", metadata={"short": "yes"})
        assert capped.headers["x-headgate-backend"] == "base"
        assert capped.json()["usage"]["completion_tokens"] == 2
        assert (await served.chat(metadata={"forbidden": "yes"})).status_code == 403
        told = (await served.client.post("/route/explain", json=_body())).json()
        assert any("pinned by an operator" in target["why"] for target in told["targets"])


async def test_drained_backend_gets_no_new_requests_until_it_is_undrained(tmp_path: Path) -> None:
    """The next one answers; whoever names it hears 503 and when to come back."""
    async with gateway(settings(tmp_path)) as served:
        assert (await put(served, "drain.small")).status_code == 200
        assert (await served.chat()).headers["x-headgate-backend"] == "base"
        named = await served.chat(model="small")
        assert named.status_code == 503
        assert "drained" in named.json()["error"]["message"]
        assert named.headers["retry-after"] == "30"
        ready = (await served.client.get("/health/ready")).json()
        assert ready["backends"] == ["base"]
        lifted = await served.client.delete("/admin/overrides", params={"slot": "drain.small"})
        assert lifted.json()["lifted"] is True
        assert (await served.chat(model="small")).status_code == 200
        again = await served.client.delete("/admin/overrides", params={"slot": "drain.small"})
        assert again.status_code == 404


@pytest.mark.parametrize(("slot", "verdict"), [("cache.exact", "off"), ("cache.semantic", "exact")])
async def test_cache_is_off_as_far_as_the_operator_says(
    tmp_path: Path, slot: str, verdict: str
) -> None:
    """Without the semantic cache the exact one goes on; without the exact one none does."""
    async with gateway(settings(tmp_path)) as served:
        await served.chat(temperature=0)
        assert (await put(served, slot)).status_code == 200
        assert (await served.chat(temperature=0)).headers["x-headgate-cache"] == verdict


async def test_pinned_policy_decides_whatever_its_file_says(tmp_path: Path) -> None:
    """The version of the moment stays, also by the policy's own name; unpinned, the file counts."""
    async with gateway(settings(tmp_path)) as served:
        await put(served, "pin.policy", "test")
        (tmp_path / "policies" / "test.toml").write_text(OTHER)
        pinned = await served.chat("one")
        assert pinned.headers["x-headgate-backend"] == "small"
        assert (await served.chat("two", model="policy:test")).headers[
            "x-headgate-rule"
        ] == "default"
        assert (await served.client.get("/health")).json()["policy"] == pinned.headers[
            "x-headgate-policy"
        ]
        await served.client.delete("/admin/overrides", params={"slot": "pin.policy"})
        assert (await served.chat("one")).headers["x-headgate-backend"] == "base"


async def test_earlier_version_is_pinned_out_of_the_history(tmp_path: Path) -> None:
    """By NAME@SHA of a version that decided once; one that never did is refused."""
    async with gateway(settings(tmp_path)) as served:
        first = (await served.chat("one")).headers["x-headgate-policy"]
        (tmp_path / "policies" / "test.toml").write_text(OTHER)
        await served.chat("two")
        await served.parts.history.aclose()  # writes what it has noted
        assert (await put(served, "pin.policy", first)).status_code == 200
        assert (await served.chat("three")).headers["x-headgate-policy"] == first
        assert (await put(served, "pin.policy", "test@ffffffff")).status_code == 404


async def test_overrides_are_shown_and_audited(tmp_path: Path) -> None:
    """Health shows what, the admin path also who and why; the audit log has each act."""
    async with gateway(settings(tmp_path)) as served:
        await put(served, "drain.small", for_s=60, why="new disk", by="cli:anna")
        (public,) = (await served.client.get("/health")).json()["overrides"]
        assert (public["slot"], public["value"]) == ("drain.small", "drained")
        assert "by" not in public
        (full,) = (await served.client.get("/admin/overrides")).json()["overrides"]
        assert (full["by"], full["why"]) == ("anonymous (cli:anna)", "new disk")
        await served.client.delete("/admin/overrides", params={"slot": "drain.small"})
        async with served.parts.engine.connect() as connection:
            acts = await list_acts(connection)
        assert [act.action for act in acts] == ["overrides.lift", "overrides.set"]


@pytest.mark.parametrize(
    ("slot", "value", "for_s", "status", "words"),
    [
        ("pin.backend", "nobody", 60, 404, "base, small"),
        ("drain.nobody", "", 60, 404, "base, small"),
        ("pin.policy", "nobody", 60, 404, "nobody"),
        ("pin.colour", "blue", 60, 400, "pin.policy"),
        ("drain.small", "", 0, 400, "more than 0"),
        ("drain.small", "", 1e9, 400, "30 days"),
    ],
)
async def test_wrong_wishes_are_refused(
    tmp_path: Path, slot: str, value: str, for_s: float, status: int, words: str
) -> None:
    """With what there is instead; nothing comes into force."""
    async with gateway(settings(tmp_path)) as served:
        answer = await put(served, slot, value, for_s=for_s)
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]
        assert served.parts.overrides.current() == []


def _body() -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": "hello there"}]}
