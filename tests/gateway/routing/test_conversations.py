"""Turns of a conversation find each other, in every process, and its requests stay together."""

from pathlib import Path
from typing import Any

import msgspec

from backends.wire import ChatCompletionRequest
from gateway.cache.store import MemoryStore
from gateway.routing.conversations import Conversations
from policies.model import Warm
from tests.gateway.serving import gateway, settings

POLICY = """
[sticky]
min_gain = 0.5  # more than the head can make of these words, whichever outcomes it was fitted on
[[rules]]
name = "first-to-base"
when = { turns = { max = 2 } }
route = "base"
[default]
route = "small"
fallbacks = ["base"]
"""


def chat(*turns: str) -> ChatCompletionRequest:
    """Messages by whoever's letter they begin with."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    messages = [{"role": roles[turn[0]], "content": turn} for turn in turns]
    return msgspec.convert({"model": "auto", "messages": messages}, ChatCompletionRequest)


async def test_next_turn_finds_who_answered_the_last() -> None:
    """Also where the client shortened the answer; not another team, prompt or conversation."""
    seen = Conversations(MemoryStore(), 600)
    seen.note(chat("s", "u1", "a1", "u2"), "team", Warm(backend="base", tokens=9))
    await seen.settled()
    found = await seen.warm(chat("s", "u1", "a!", "u2", "a2", "u3"), "team")
    assert found == Warm(backend="base", tokens=9)
    assert await seen.warm(chat("s", "u1", "a1", "u2", "a2", "u3"), "other") is None
    assert await seen.warm(chat("s!", "u1", "a1", "u2", "a2", "u3"), "team") is None
    assert await seen.warm(chat("s", "u1", "a1", "u2"), "team") is None


async def test_nothing_is_kept_where_it_is_turned_off() -> None:
    """conversation_s = 0."""
    store = MemoryStore()
    seen = Conversations(store, 0)
    seen.note(chat("u1"), "team", Warm(backend="base", tokens=9))
    await seen.settled()
    assert [key async for key in store.scan("")] == []


async def test_conversation_stays_with_its_backend_over_http(tmp_path: Path) -> None:
    """The second turn's rule says small; nothing is gained by moving, and explain says so."""
    chosen = settings(tmp_path)
    (tmp_path / "policies" / "test.toml").write_text(POLICY)
    first = [{"role": "user", "content": "tell me of tides"}]
    async with gateway(chosen) as served:
        answer = await served.chat(messages=first)
        assert answer.headers["x-headgate-backend"] == "base"
        await served.parts.conversations.settled()
        said = answer.json()["choices"][0]["message"]
        second: list[Any] = [*first, said, {"role": "user", "content": "and why twice a day?"}]
        body = {"model": "auto", "messages": second}
        told = (await served.client.post("/route/explain", json=body)).json()
        assert told["winner"] == "base"
        assert told["facts"]["warm"]["backend"] == "base"
        again = await served.chat(messages=second)
        assert again.headers["x-headgate-backend"] == "base"
        row = (await served.settled(again)).request
        assert row.decided_on is not None
        assert row.decided_on.warm is not None
        assert row.decided_on.warm[0] == "base"
        other = [{"role": "user", "content": "hi"}, said, {"role": "user", "content": "and you?"}]
        assert (await served.chat(messages=other)).headers["x-headgate-backend"] == "small"
