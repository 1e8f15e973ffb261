"""`headgate explain REQUEST_ID`: the story out of what was recorded."""

from pathlib import Path

from backends.echo import EchoBackend
from gateway.cli.explain import _story
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
