"""A backend that says 429 is well: left alone for as long as it asked, and no longer."""

from pathlib import Path

import pytest

from backends.client.breaker import BreakerSettings
from backends.client.http_replica import Replica
from backends.client.openai_errors import error_from_response
from backends.client.replica_set import ReplicaSet
from backends.contract import GenerateRequest
from backends.echo import EchoBackend
from backends.errors import (
    BackendOverloadedError,
    BackendRateLimitedError,
    BackendResponseError,
    BackendUnavailableError,
)
from gateway.routing.health import BackendRegistry
from gateway.settings import BackendSettings, Settings
from gateway.settings.failure import FailureSettings
from tests.gateway.serving import gateway, settings

LIMITED = {"retry-after": "7"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (429, "rate_limit_exceeded", BackendRateLimitedError),
        (529, "overloaded_error", BackendRateLimitedError),
        (503, "", BackendOverloadedError),
        (429, "insufficient_quota", BackendResponseError),
    ],
)
def test_refusals_say_whether_the_server_is_well(
    status: int, code: str, kind: type[Exception]
) -> None:
    """429 is a wish; 503 may be sickness; an account without money is like a refused key."""
    body = b'{"error": {"message": "no", "code": "%s"}}' % code.encode()
    error = error_from_response("a", status, LIMITED, body)
    assert type(error) is kind
    assert getattr(error, "retry_after_s", 7.0) == 7.0


async def registry_of(clock: Clock) -> BackendRegistry:
    chosen = Settings(backends=[BackendSettings(name="a", kind="echo", model="m")])
    registry = BackendRegistry(chosen, {"a": EchoBackend("a")}, clock=clock)
    await registry.probe("a")
    return registry


async def test_rate_limit_cools_a_backend_and_opens_no_breaker() -> None:
    """Not ready for as long as it asked, at most `open_max_s`; then as before."""
    clock = Clock()
    registry = await registry_of(clock)
    for _ in range(10):
        registry.mark_error("a", BackendRateLimitedError("slow down", retry_after_s=7.0))
    assert not registry.cards()["a"].ready
    assert not registry.admits("a")
    assert registry.closed_to("a") == ("it asked to be left alone (slow down)", 7.0)
    assert registry.state()["a"]["breaker"] == "closed"
    assert registry.state()["a"]["detail"] == "slow down"
    clock.now += 7.0
    assert registry.admits("a")
    assert registry.cards()["a"].ready
    assert registry.state()["a"]["detail"] == ""
    registry.mark_error("a", BackendRateLimitedError("slow down", retry_after_s=3600.0))
    clock.now += FailureSettings().open_max_s
    assert registry.cards()["a"].ready


async def test_half_open_breaker_is_ready_and_probed_at_leisure() -> None:
    """Without traffic it stays half open: that is not being down."""
    clock = Clock()
    registry = await registry_of(clock)
    for _ in range(3):
        registry.mark_error("a", BackendUnavailableError("boom"))
    assert not registry.state()["a"]["ready"]
    clock.now += 3600.0
    state = registry.state()["a"]
    assert (state["breaker"], state["ready"]) == ("half_open", True)


def test_address_that_says_429_is_asked_after_the_others() -> None:
    """The backend as a whole cools only when each of its addresses does."""
    clock = Clock()
    made = [Replica(f"http://{name}/v1", None, BreakerSettings()) for name in ("a", "b")]
    both = ReplicaSet(made, clock)
    ask = GenerateRequest(request_id="1", endpoint="chat/completions", body={})

    def refuse(number: int, after_s: float) -> None:
        place = both.take(number, ask, (), 1)
        place.failed(BackendRateLimitedError("slow down", retry_after_s=after_s))
        place.leave()

    refuse(0, 7.0)
    assert both.in_order(ask, (), 1)[0] == 1
    assert both.cooled_s() == 0.0
    refuse(1, 2.0)
    assert both.cooled_s() == 2.0
    assert all(not replica.breaker.failures for replica in made)


async def test_requests_go_elsewhere_while_a_backend_cools(tmp_path: Path) -> None:
    """One refusal is enough: the next requests do not ask it at all."""
    small = EchoBackend("small", faults=["overload"], retry_after_s=20.0)
    async with gateway(settings(tmp_path), {"small": small, "base": EchoBackend("base")}) as served:
        for number in range(3):
            answer = await served.chat(f"hello {number}")
            assert answer.headers["x-headgate-backend"] == "base"
        assert len(small.requests) == 1
        refused = await served.chat("hello again", model="small")
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert "it asked to be left alone" in refused.text
        health = (await served.client.get("/health")).json()
        assert health["backends"][0]["breaker"] == "closed"
