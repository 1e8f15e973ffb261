"""A deadline's time is shared: who hangs leaves enough for who comes after."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from backends.echo import EchoBackend
from gateway.dispatch.deadlines import share_s
from tests.gateway.serving import decode, events, gateway, settings, text_of


@pytest.mark.parametrize(
    ("slow_s", "after_s", "expected"),
    [
        (None, [None], 5.0),  # nothing is known: equal parts
        (None, [None, None, 1.0], 2.5),
        (1.0, [1.0], 5.0),  # never less than an equal part
        (7.0, [1.0], 7.0),  # it may need longer, and the next one is quick
        (9.0, [2.0], 6.0),  # twice what the next one usually takes is kept
        (9.0, [None], 5.0),
        (9.0, [8.0], 9.0),  # the next one could not answer in half of the time anyway
        (30.0, [8.0], 10.0),
        (9.0, [1.0, 8.0], 8.0),
    ],
)
def test_share_is_equal_at_least_and_longer_where_others_are_quick(
    slow_s: float | None, after_s: list[float | None], expected: float
) -> None:
    """Of ten seconds."""
    assert share_s(10.0, slow_s, after_s) == pytest.approx(expected)


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_backend_leaves_its_fallback_time_to_answer(
    tmp_path: Path, stream: bool
) -> None:
    """The fallback answers before the deadline; both calls are on record. Deadlines of clients
    open no breaker."""
    made = {"small": EchoBackend("small", delay_s=30.0), "base": EchoBackend("base")}
    async with gateway(settings(tmp_path), made) as served:
        wanted: Any = {"stream": stream, "headers": {"x-headgate-deadline-ms": "3000"}}
        asked = [served.chat(f"hello {number}", **wanted) for number in range(4)]
        for number, answer in enumerate(await asyncio.gather(*asked)):
            body: Any = events(answer) if stream else decode(answer)
            text = text_of(body) if stream else body["choices"][0]["message"]["content"]
            assert text == f"You said: hello {number}"
        attempts = (await served.settled(answer)).request.attempts
        assert [attempt.backend for attempt in attempts] == ["small", "base"]
        assert "its part of the time to the deadline" in (attempts[0].error or "")
        assert served.parts.registry.state()["small"]["breaker"] == "closed"


async def test_backend_that_is_far_slower_than_ever_is_not_well(tmp_path: Path) -> None:
    """Where it had many times what it needs, a deadline's end is its failure: the breaker opens."""
    small = EchoBackend("small", token_delay_s=0.001)
    async with gateway(settings(tmp_path), {"small": small, "base": EchoBackend("base")}) as served:
        for number in range(20):
            await served.chat(f"quick {number}", max_tokens=4)
        small.fault = "hang"
        wanted: Any = {"max_tokens": 4, "headers": {"x-headgate-deadline-ms": "6000"}}
        asked = [served.chat(f"slow {number}", **wanted) for number in range(3)]
        for answer in await asyncio.gather(*asked):
            assert answer.headers["x-headgate-backend"] == "base"
        assert served.parts.registry.state()["small"]["breaker"] != "closed"
