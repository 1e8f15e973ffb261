"""`headgate explain REQUEST_ID`: the story out of what was recorded."""

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.echo import EchoBackend
from gateway.cli import cli
from gateway.cli.explain import _story
from gateway.settings import BackendSettings
from tests.gateway.dispatch.climbing import PRICE
from tests.gateway.serving import decode, gateway, settings


async def test_the_story_has_candidates_loads_and_every_attempt(tmp_path: Path) -> None:
    """Who could have answered, what was expected of each, and who failed before it was answered."""
    chosen = settings(tmp_path)
    made = {"small": EchoBackend("small"), "base": EchoBackend("base")}
    async with gateway(chosen, made) as served:
        answer = await served.chat("what is 2 + 2?")
        request_id = answer.headers["x-headgate-request-id"]
        record = decode(await served.client.get(f"/requests/{request_id}"))
    told = "\n".join(_story(record))
    assert "candidate small: " in told
    assert "candidate base: " in told
    assert "expected, load 0.00" in told
    assert "attempt   small" in told
    assert "✓ default: no rule before it matched" in told


async def test_what_was_refused_unread_has_neither_features_nor_policy(tmp_path: Path) -> None:
    """Only what is known is told: who asked, and which refusal it was."""
    made = {"small": EchoBackend("small"), "base": EchoBackend("base")}
    async with gateway(settings(tmp_path), made) as served:
        request_id = (await served.chat(what=1)).headers["x-headgate-request-id"]
        record = decode(await served.client.get(f"/requests/{request_id}"))
    told = _story(record)
    assert told[2].startswith("outcome   refused (400 invalid_request_error) in ")
    assert not [line for line in told if line.startswith(("features", "policy"))]


async def test_expected_costs_are_those_that_explaining_says(tmp_path: Path) -> None:
    """Also of a policy that weighs no costs: by the answers that were seen, not by a flat guess."""
    chosen = settings(
        tmp_path,
        *(
            BackendSettings(name=name, kind="echo", model="e", tier=name, price=PRICE)
            for name in ("small", "base")
        ),
    )
    reply = {"small": EchoBackend("small", reply="four"), "base": EchoBackend("base")}
    async with gateway(chosen, reply) as served:
        for number in range(8):
            await served.settled(await served.chat(f"what is {number} + 2?"))
        body = {"model": "auto", "messages": [{"role": "user", "content": "what is 9 + 2?"}]}
        said = decode(await served.client.post("/route/explain", json=body))["candidates"]
        found = await served.settled(await served.chat("what is 9 + 2?"))
    expected = {one["backend"]: Decimal(one["cost_usd"]) * 10**9 for one in said}
    assert {c.backend: c.cost_nano_usd for c in found.request.candidates} == expected


async def test_what_cost_nothing_is_explained_too(tmp_path: Path) -> None:
    """A denial and a cached answer have no charges, and a story all the same."""
    chosen = settings(tmp_path)
    denying = '[[rules]]\nname = "no"\nwhen = { user = ["eve"] }\ndeny = "not you"\n'
    policy = tmp_path / "policies" / "test.toml"
    policy.write_text(denying + policy.read_text())
    made = {"small": EchoBackend("small"), "base": EchoBackend("base")}
    async with gateway(chosen, made) as served:
        await served.chat("what is 2 + 2?", temperature=0)
        cached = await served.chat("what is 2 + 2?", temperature=0)
        denied = await served.chat("what is 2 + 2?", user="eve")
        stories = []
        for answer in (cached, denied):
            request_id = answer.headers["x-headgate-request-id"]
            record = decode(await served.client.get(f"/requests/{request_id}"))
            assert (record["charges"], sorted(record)) == ([], ["charges", "request"])
            stories.append("\n".join(_story(record)))
    assert "cache     exact" in stories[0]
    assert "outcome   denied (403 policy_denied)" in stories[1]
    assert "rule no: user eve in [eve]" in stories[1]


async def test_a_plain_route_tells_the_latency_expected_once_answers_were_seen(
    tmp_path: Path,
) -> None:
    """The first request has no past to go by; the next says what it was expected to take."""
    made = {"small": EchoBackend("small"), "base": EchoBackend("base")}
    async with gateway(settings(tmp_path), made) as served:
        seen = []
        for text in ("what is 2 + 2?", "what is 3 + 3, and why?"):
            request_id = (await served.chat(text)).headers["x-headgate-request-id"]
            record = decode(await served.client.get(f"/requests/{request_id}"))
            seen.append({c["backend"]: c["latency_ms"] for c in record["request"]["candidates"]})
    assert seen[0]["small"] is None
    assert seen[1]["small"] >= 0
    assert seen[1]["base"] is None


async def test_without_a_gateway_the_database_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was settled can be explained while nothing runs; a gateway that is named must answer."""
    chosen = settings(tmp_path)
    async with gateway(chosen, {"small": EchoBackend("small"), "base": EchoBackend("base")}) as up:
        request_id = (await up.chat("what is 2 + 2?")).headers["x-headgate-request-id"]
    monkeypatch.setenv("HEADGATE_STATE_DIR", chosen.state_dir)
    monkeypatch.setenv("HEADGATE_PORT", "9")
    monkeypatch.chdir(tmp_path)
    told = await asyncio.to_thread(CliRunner().invoke, cli, ["explain", request_id])
    assert told.exit_code == 0, told.output
    assert "attempt   small" in told.stdout
    unknown = await asyncio.to_thread(CliRunner().invoke, cli, ["explain", "gone"])
    assert (unknown.exit_code, "'gone'" in unknown.stderr) == (1, True)
