"""Breakers: closed, open, half-open; and what gateways tell each other of them."""

import asyncio
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backends.client.breaker import Breaker, BreakerSettings
from backends.echo import EchoBackend
from gateway.cache.store import RedisStore
from gateway.routing.health import BackendRegistry
from gateway.routing.shared_breakers import SharedBreakers, identities
from gateway.settings import BackendSettings, Settings
from tests.conftest import RedisServer
from tests.gateway.serving import gateway, settings

SETTINGS = BreakerSettings(failures_to_open=3, open_s=1.0, open_max_s=4.0)


def opened(now: float = 0.0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(SETTINGS)
    assert [breaker.failure(now, "boom") for _ in range(3)] == [False, False, True]
    return breaker


def test_open_breaker_lets_nobody_pass_and_half_open_lets_one() -> None:
    """After the pause one trial passes; the next ones wait for its verdict."""
    breaker = opened()
    assert (breaker.state(0.5), breaker.admits(0.5)) == ("open", False)
    assert breaker.state(1.0) == "half_open"
    assert [breaker.admits(1.0) for _ in range(3)] == [True, False, False]
    breaker.release()
    assert breaker.admits(1.0), "a trial whose client left is no verdict"
    assert breaker.success()
    assert (breaker.state(1.0), breaker.failures) == ("closed", 0)


def test_failed_trial_opens_for_twice_as_long() -> None:
    """Pauses double up to the limit, and last at least as long as the server asked for."""
    breaker, now, pauses = opened(), 0.0, [1.0]
    for _ in range(3):
        now = breaker.open_until
        assert breaker.admits(now)
        assert breaker.failure(now)
        pauses.append(breaker.open_until - now)
    assert pauses == [1.0, 2.0, 4.0, 4.0]
    asked = Breaker(SETTINGS)
    for _ in range(3):
        asked.failure(0.0, "", 2.5)
    assert asked.open_until == 2.5


@given(st.lists(st.tuples(st.sampled_from("fsart"), st.floats(0, 5)), max_size=60))
def test_breaker_never_locks_a_backend_out_for_good(steps: list[tuple[str, float]]) -> None:
    """Whatever happens, a pause after the last event some request may pass again."""
    breaker, now = Breaker(SETTINGS), 0.0
    for what, passed in steps:
        now += passed
        if what == "f":
            breaker.failure(now)
        elif what == "s":
            breaker.success()
        elif what == "a":
            breaker.admits(now)
        elif what == "r":
            breaker.release()
        else:
            breaker.adopt(2, now + 1.0, "told")
    breaker.release()
    assert breaker.admits(now + SETTINGS.open_max_s + 0.01)


async def _open(registry: BackendRegistry, name: str = "a") -> None:
    for _ in range(3):
        registry.mark_failure(name, "boom")


async def _until(holds: object, limit_s: float = 5.0) -> float:
    """Seconds until `holds()`."""
    began = time.monotonic()
    while not holds():  # type: ignore[operator]
        assert time.monotonic() - began < limit_s
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_two_gateways_on_one_redis_agree_within_a_second(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """What one finds out the other knows within a second: opening and closing; a gateway that
    starts later knows at once."""
    chosen = [
        settings(
            folder,
            BackendSettings(name="a", kind="openai", model="m", base_urls=["http://a.test/v1"]),
            BackendSettings(name="base", kind="echo", model="m"),
        )
        for folder in (tmp_path / "one", tmp_path / "two")
        if not folder.mkdir()
    ]
    stores = [RedisStore(redis_server.url, timeout_s=1.0) for _ in range(2)]

    def made() -> dict[str, EchoBackend]:
        return {"a": EchoBackend("a"), "base": EchoBackend("base")}

    async with gateway(chosen[0], made(), stores[0]) as one:
        first = one.parts.registry
        async with gateway(chosen[1], made(), stores[1]) as two:
            second = two.parts.registry
            await _open(first)
            assert not first.admits("a")
            opened_s = await _until(lambda: not second.admits("a"))
            assert second.state()["a"]["detail"] == "boom"
            first.mark_success("a")
            closed_s = await _until(lambda: second.state()["a"]["breaker"] == "closed")
            assert max(opened_s, closed_s) < 1.0
            await _open(second, "base")
            await asyncio.sleep(0.5)
            assert first.admits("base"), "the other's own echo is not ours"
            await _open(second)
            await _until(lambda: not first.admits("a"))
        store = RedisStore(redis_server.url)
        late = BackendRegistry(chosen[1], made())
        known = identities(["a"], {"a": chosen[1].backend("a")}, "elsewhere")
        await SharedBreakers(late, store.command, known).look()
        assert not late.admits("a")
        await store.aclose()


async def test_without_redis_breakers_are_local_and_told_when_it_is_back(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """An outage of Redis loses neither breaker nor requests; its return spreads the news."""
    chosen = Settings(
        backends=[BackendSettings(name="a", kind="openai", model="m", base_urls=["http://x/v1"])]
    )
    registries = [BackendRegistry(chosen, {"a": EchoBackend("a")}) for _ in range(2)]
    stores = [RedisStore(redis_server.url, timeout_s=0.2) for _ in range(2)]
    known = identities(["a"], {"a": chosen.backend("a")}, "")
    shared = [
        SharedBreakers(registry, store.command, known)
        for registry, store in zip(registries, stores, strict=True)
    ]
    redis_server.stop()
    for one in shared:
        await one.start()
    try:
        await _open(registries[0])
        assert not registries[0].admits("a")
        assert registries[1].admits("a")
        registries[0].mark_failure("a")
        redis_server.start()
        await _until(lambda: registries[1].state()["a"]["breaker"] != "closed", 10.0)
    finally:
        for one, store in zip(shared, stores, strict=True):
            await one.aclose()
            await store.aclose()
