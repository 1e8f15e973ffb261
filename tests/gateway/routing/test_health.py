"""Cards follow probes, failures and load."""

import asyncio
from collections.abc import Mapping

import pytest

from backends.client.openai_http import OpenAIHTTPBackend
from backends.contract import BackendHealth
from backends.echo import EchoBackend
from backends.wire import ENGINE_CAPABILITIES
from gateway.routing.health import BackendRegistry
from gateway.settings import BackendSettings, PriceSettings, Settings
from gateway.settings.failure import FailureSettings

FAILURES_TO_OPEN = FailureSettings().failures_to_open
OPEN_MAX_S = FailureSettings().open_max_s


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Probed(EchoBackend):
    """An echo whose health a test sets."""

    health: BackendHealth | Exception = BackendHealth(ready=True, capacity=4)
    hangs = False

    async def probe(self) -> BackendHealth:
        if self.hangs:
            await asyncio.sleep(60)
        if isinstance(self.health, Exception):
            raise self.health
        return self.health


SETTINGS = Settings(
    backends=[
        BackendSettings(name="a", model="m", tier="t", accepts=["tools"], context_tokens=100),
        BackendSettings(
            name="b",
            kind="openai",
            model="m",
            base_urls=["http://x"],
            max_concurrency=10,
            price=PriceSettings(input_usd_per_mtok=1, output_usd_per_mtok=5),  # type: ignore[arg-type]
        ),
        BackendSettings(name="e", kind="encoder", model="m"),
    ]
)


async def registry_of(clock: Clock | None = None, **backends: EchoBackend) -> BackendRegistry:
    registry = BackendRegistry(SETTINGS, backends, timeout_s=0.05, clock=clock or Clock())
    for name in backends:
        await registry.probe(name)
    return registry


async def test_cards_say_what_settings_and_probe_know() -> None:
    """Tier, price, endpoints, capabilities from the settings; revision, load from the probe."""
    a = Probed("a")
    a.health = BackendHealth(
        ready=True, running=2, waiting=1, capacity=4, model_revision="r1", context_tokens=80
    )
    registry = await registry_of(a=a, b=Probed("b"), e=Probed("e"), minilm=Probed("minilm"))
    cards = registry.cards()
    assert (cards["a"].tier, cards["a"].revision, cards["a"].load) == ("t", "r1", 0.75)
    assert cards["a"].context_tokens == 80, "the smaller of both"
    assert cards["a"].accepts == ENGINE_CAPABILITIES, "it does not say that it is otherwise"
    assert cards["b"].accepts == set(), "what only our own engine does unasked"
    assert (cards["b"].tier, cards["b"].usd_per_mtok) == ("b", 2.0)
    assert cards["e"].endpoints == cards["minilm"].endpoints == {"embeddings"}
    assert cards["minilm"].model == "bundled:minilm"
    assert registry.ready_names() == ["a", "b", "e", "minilm"]


async def test_engines_accept_what_their_model_does() -> None:
    """And what the operator says they do."""
    a, b = Probed("a"), Probed("b")
    a.health = b.health = BackendHealth(ready=True, accepts=("tool_choice",))
    cards = (await registry_of(a=a, b=b)).cards()
    assert cards["a"].accepts == {"tool_choice", "tools"}
    assert cards["b"].accepts == set(), "others' servers are believed by configuration only"


async def test_backend_is_not_ready_before_its_first_probe() -> None:
    """Nobody is sent to a backend of which nothing is known."""
    registry = BackendRegistry(SETTINGS, {"a": Probed("a")})
    assert registry.ready_names() == []


@pytest.mark.parametrize("how", ["unready", "raises", "hangs"])
async def test_backend_whose_probe_fails_is_not_ready(how: str) -> None:
    """A probe that says no, raises or hangs takes the backend out, and never raises itself."""
    backend = Probed("a")
    registry = await registry_of(a=backend)
    backend.hangs = how == "hangs"
    backend.health = ValueError("boom") if how == "raises" else BackendHealth(ready=False)
    await registry.probe("a")
    assert registry.ready_names() == []
    backend.hangs, backend.health = False, BackendHealth(ready=True)
    await registry.probe("a")
    assert registry.ready_names() == ["a"]


async def test_running_requests_count_as_load_at_once() -> None:
    """What this process has sent counts before the next probe sees it, and is taken back."""
    registry = await registry_of(a=Probed("a"))
    with registry.running("a"), registry.running("a"):
        assert registry.in_flight("a") == 2
        assert registry.cards()["a"].load == 0.5
        with pytest.raises(ZeroDivisionError), registry.running("a"):
            raise ZeroDivisionError
    assert registry.cards()["a"].load == 0.0


async def test_breaker_opens_after_failures_in_a_row_and_tries_again() -> None:
    """It opens for a while that doubles, is tried again after it, and closes with a success."""
    clock = Clock()
    registry = await registry_of(clock, a=Probed("a"))
    for _ in range(FAILURES_TO_OPEN - 1):
        registry.mark_failure("a", "boom")
    assert registry.ready_names() == ["a"]
    registry.mark_failure("a", "boom")
    assert registry.ready_names() == []
    state = registry.state()["a"]
    assert (state["breaker"], state["detail"]) == ("open", "boom")
    clock.now += 1.01
    assert registry.ready_names() == ["a"]
    registry.mark_failure("a", "boom")
    clock.now += 1.01
    assert registry.ready_names() == [], "the second pause is longer"
    clock.now += 1.0
    assert registry.ready_names() == ["a"]
    registry.mark_success("a")
    registry.mark_failure("a", "boom")
    assert registry.ready_names() == ["a"], "a success starts the count over"


async def test_breaker_pause_has_a_limit() -> None:
    """However often it fails, the breaker tries again within OPEN_MAX_S."""
    clock = Clock()
    registry = await registry_of(clock, a=Probed("a"))
    for _ in range(60):
        registry.mark_failure("a")
        clock.now += OPEN_MAX_S + 0.01
    assert registry.ready_names() == ["a"]


async def test_registry_probes_in_the_background() -> None:
    """A backend that becomes ready later is found without anybody asking."""
    backend = Probed("a")
    backend.health = BackendHealth(ready=False, detail="loading")
    registry = BackendRegistry(SETTINGS, {"a": backend}, not_ready_interval_s=0.01)
    await registry.start()
    try:
        assert registry.ready_names() == []
        backend.health = BackendHealth(ready=True)
        async with asyncio.timeout(5):
            while not registry.ready_names():  # noqa: ASYNC110 (there is no event to wait for)
                await asyncio.sleep(0.01)
    finally:
        await registry.aclose()


def test_state_is_plain_data() -> None:
    """/health shows each backend's condition."""
    backends: Mapping[str, EchoBackend] = {"a": EchoBackend("a")}
    registry = BackendRegistry(SETTINGS, backends)
    assert registry.state()["a"] == {
        "ready": False,
        "tier": "t",
        "model": "m",
        "revision": "",
        "load": 0.0,
        "in_flight": 0,
        "running": 0,
        "waiting": 0,
        "capacity": 0,
        "kv_usage_ratio": None,
        "context_tokens": 100,
        "breaker": "closed",
        "detail": "not probed yet",
    }


async def test_ejected_addresses_are_counted() -> None:
    """Of a backend with several, /health says how many get nothing; of one there is none to say."""
    clock = Clock()
    two = OpenAIHTTPBackend("b", ["http://one.test/v1", "http://two.test/v1"])
    registry = BackendRegistry(SETTINGS, {"a": Probed("a"), "b": two}, clock=clock)
    described = registry.state()["b"]
    assert (described["addresses"], described["addresses_ejected"]) == (2, 0)
    two.breakers["http://two.test/v1"].eject(clock.now, "boom")
    assert registry.state()["b"]["addresses_ejected"] == 1
    assert "addresses" not in registry.state()["a"]
    await two.aclose()
