"""The time behind other people's engines is shared once, by what each request had done."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.client.server_metrics import ServerMetrics
from backends.contract import Chunk, EngineUsage, Usage
from backends.meter import Meter
from gateway.ledger.foreign_cache import PrefixCache
from gateway.ledger.foreign_machine import Unwatched
from gateway.ledger.foreign_time import ForeignTime, foreign_machine
from gateway.settings import BackendSettings, Settings
from gateway.settings.prices import MachineSettings, PriceSettings

MS = 1_000_000
VLLM = BackendSettings(
    name="vllm", kind="openai", model="m", machine="gpu", base_urls=["http://x/v1"]
)
OUTSIDE = BackendSettings(
    name="outside", kind="openai", model="m", base_urls=["http://x/v1"], price=PriceSettings()
)
OURS = BackendSettings(name="small", model="bundled:small", machine="gpu")
SETTINGS = Settings(machines=[MachineSettings(name="gpu")], backends=[VLLM, OUTSIDE, OURS])


class Clock:
    """Moved on by the test."""

    def __init__(self) -> None:
        self.now = 10**9

    def __call__(self) -> int:
        return self.now


def test_only_foreign_servers_on_our_machines_are_followed() -> None:
    """Ours measure themselves; others' own machines are paid by the token."""
    foreign = ForeignTime(SETTINGS)
    assert foreign.backends == ["vllm"]
    assert foreign_machine(SETTINGS, OURS) is None
    watched = Unwatched()
    with foreign.flight(watched, "outside", 5):
        assert foreign.end(watched, "outside", Usage()) is None


def test_lone_request_is_charged_its_time() -> None:
    """All of it, also what it took to hear of the end."""
    clock = Clock()
    foreign = ForeignTime(SETTINGS, now_ns=clock)
    watched = Unwatched()
    with foreign.flight(watched, "vllm", 100):
        clock.now += 70 * MS
        assert (
            foreign.end(watched, "vllm", Usage(prompt_tokens=100, completion_tokens=9)) == 70 * MS
        )


def test_engine_of_ours_elsewhere_says_what_is_charged_and_the_rest_is_lost(
    tmp_path: Path,
) -> None:
    """Charges are its own measure, so what its machine was busy beyond is not left unexplained."""
    clock = Clock()
    meter = Meter(tmp_path / "m", ["gateway-0"], now_ns=clock)
    meter.enter(0, os.getpid())
    foreign = ForeignTime(
        SETTINGS, {"gpu": Meter(tmp_path / "m", now_ns=clock).claim()}, now_ns=clock
    )
    watched = Unwatched()
    measured = EngineUsage(prefill_ns=20 * MS, decode_ns=30 * MS)
    with foreign.flight(watched, "vllm", 100):
        clock.now += 70 * MS
        usage = Usage(prompt_tokens=100, completion_tokens=9, headgate=measured)
        assert foreign.end(watched, "vllm", usage) == 50 * MS
    assert meter.read().slots["gateway-0"].lost_ns == 20 * MS
    assert foreign.owed_ns == 0


def _serve(foreign: ForeignTime, clock: Clock, jobs: dict[str, tuple[int, int]]) -> dict[str, int]:
    """A server of 10 ms steps of which each takes 20 µs per prompt token and 1 ms per answer token
    more; all jobs at once, streamed. name → (prompt, answer) tokens; what each is charged."""
    watched = {name: Unwatched() for name in jobs}
    flights = {name: foreign.flight(watched[name], "vllm", jobs[name][0]) for name in jobs}
    for flight in flights.values():
        flight.__enter__()
    charged = {}
    clock.now += 10 * MS + sum(prompt for prompt, _ in jobs.values()) * MS // 50
    while flights:
        for name in list(flights):
            one, (prompt, answer) = watched[name], jobs[name]
            one.tokens_seen += 1
            one.first_token_at = one.first_token_at or clock.now / 1e9
            foreign.look(one, "vllm", clock.now)
            if one.tokens_seen == answer:
                usage = Usage(prompt_tokens=prompt, completion_tokens=answer)
                charged[name] = foreign.end(one, "vllm", usage) or 0
                flights.pop(name).__exit__(None, None, None)
        clock.now += (10 + len(flights)) * MS
    foreign.tick()
    return charged


def test_shares_follow_the_work_once_the_server_is_known(tmp_path: Path) -> None:
    """Twice the answer costs twice, a long prompt costs what its step took. Nothing is left out."""
    clock = Clock()
    meter = Meter(tmp_path / "m", ["gateway-0"], now_ns=clock)
    meter.enter(0, os.getpid())
    slot = Meter(tmp_path / "m", now_ns=clock).claim()
    foreign = ForeignTime(SETTINGS, {"gpu": slot}, now_ns=clock)
    for turn in range(120):
        _serve(foreign, clock, {"a": (50 + turn * 20, 20), "b": (10, 40 - turn % 30)})
        _serve(foreign, clock, {"a": (50 + turn * 20, 20)})
    began, owed, lost = clock.now, foreign.owed_ns, meter.read().slots["gateway-0"].lost_ns
    charged = _serve(foreign, clock, {"long": (2000, 20), "answer": (10, 40), "half": (10, 20)})
    passed = clock.now - began - 10 * MS  # the last step's, of nobody
    lost = meter.read().slots["gateway-0"].lost_ns - lost
    assert sum(charged.values()) + foreign.owed_ns - owed + lost == passed
    assert 0 <= lost < MS, "on their way to the server"
    half = 20 * (10 / 3 + 1) * MS
    assert charged["half"] == pytest.approx(half, rel=0.2)
    assert charged["long"] == pytest.approx(half + 40 * MS, rel=0.2)
    assert charged["answer"] == pytest.approx(half + 20 * 11 * MS, rel=0.2)


def test_what_no_request_comes_to_pay_is_lost() -> None:
    """A difference waits for the next requests, but not for ever."""
    clock = Clock()
    foreign = ForeignTime(SETTINGS, now_ns=clock)
    for _ in range(20):
        _serve(foreign, clock, {"a": (50, 20), "b": (10, 40)})
    slow = Unwatched()
    with foreign.flight(slow, "vllm", 10):
        clock.now += 5_000 * MS
        charged = foreign.end(slow, "vllm", Usage(prompt_tokens=10, completion_tokens=20))
    assert charged is not None
    assert 0 < charged < 5_000 * MS
    assert foreign.owed_ns > 0, "the next ones pay the rest"
    foreign.tick()
    assert foreign.owed_ns > 0
    clock.now += 61_000 * MS
    foreign.tick()
    assert foreign.owed_ns == 0


def test_pieces_that_arrive_together_teach_the_same() -> None:
    """A server or a proxy that sends twenty tokens at a time costs per token what others do."""
    clock = Clock()
    foreign = ForeignTime(SETTINGS, now_ns=clock)
    for turn in range(60):
        prompt, answer = 10 + turn % 20 * 50, 81 + turn % 4 * 20
        watched = Unwatched()
        with foreign.flight(watched, "vllm", prompt):
            clock.now += 10 * MS + prompt * MS // 50
            for watched.tokens_seen in range(1, answer + 1):
                clock.now += 200 * MS if watched.tokens_seen % 20 == 2 else 5_000
                foreign.look(watched, "vllm", clock.now)
            usage = Usage(prompt_tokens=prompt, completion_tokens=answer)
            foreign.end(watched, "vllm", usage)
        foreign.tick()
    weights = foreign._servers["vllm"].weights
    answer_ns = weights.work_ns(10, 10, 101, 1) - weights.work_ns(10, 10, 1, 1)
    assert answer_ns == pytest.approx(100 * 10 * MS, rel=0.06)


async def test_streams_are_looked_at_on_their_way() -> None:
    """Each piece leaves its time and how far the answer is; the stream itself is unchanged."""
    clock = Clock()
    foreign = ForeignTime(SETTINGS, now_ns=clock)
    watched = Unwatched()

    async def pieces() -> AsyncGenerator[Chunk, None]:
        for _ in range(3):
            clock.now += MS
            yield Chunk(body={})

    with foreign.flight(watched, "vllm", 10):
        async for _ in foreign.timed(watched, "vllm", pieces()):
            watched.tokens_seen += 2
        (flight,) = foreign._machines[0].flights.values()
        assert flight.marks == [(10**9 + n * MS, 2 * n) for n in (1, 2, 3)]
    same = pieces()
    assert foreign.timed(watched, "outside", same) is same
    await same.aclose()


def test_way_to_an_idle_server_is_nobody_s_work() -> None:
    """Once the server is known, requests that come alone pay their steps, not the way."""
    clock = Clock()
    foreign = ForeignTime(SETTINGS, now_ns=clock)
    charged, computed = [], []
    for turn in range(120):
        clock.now += 300 * MS
        began, prompt = clock.now, 10 + turn % 20 * 50
        watched = Unwatched()
        with foreign.flight(watched, "vllm", prompt):
            clock.now += 30 * MS + prompt * MS // 50
            for watched.tokens_seen in range(1, 30 + turn % 40):
                clock.now += 10 * MS
                foreign.look(watched, "vllm", clock.now)
            usage = Usage(prompt_tokens=prompt, completion_tokens=watched.tokens_seen)
            charged.append(foreign.end(watched, "vllm", usage) or 0)
            computed.append(clock.now - began - 30 * MS)
        foreign.tick()
    assert sum(charged[60:]) == pytest.approx(sum(computed[60:]), rel=0.03)


def test_cached_prompts_are_attended_to_at_their_own_price() -> None:
    """A server that reads a shared prefix once for all charges little for it."""
    clock = Clock()
    foreign = ForeignTime(SETTINGS, now_ns=clock)
    charged: dict[int, int] = {}
    for turn in range(200):
        cached = 2000 * (turn % 2)
        usage = Usage(prompt_tokens=2100, completion_tokens=33, cached_tokens=cached)
        watched = Unwatched()
        with foreign.flight(watched, "vllm", 2100):
            clock.now += (2100 - cached) * MS // 50
            for watched.tokens_seen in range(1, 34):
                clock.now += 10 * MS + (2100 - cached) * MS // 200
                foreign.look(watched, "vllm", clock.now)
            charged[cached] = foreign.end(watched, "vllm", usage) or 0
        foreign.tick()
    assert charged[2000] == pytest.approx(2 * MS + 33 * 10.5 * MS, rel=0.1)
    assert charged[0] == pytest.approx(42 * MS + 33 * 20.5 * MS, rel=0.1)


@pytest.mark.parametrize(
    ("cached_each", "gap"), [(2000, 8), (0, 1)], ids=["a silent cache", "no cache"]
)
def test_cache_that_answers_do_not_tell_of_is_known_by_its_sum(cached_each: int, gap: int) -> None:
    """What was sent before is cached as far as /metrics says so; a server without a cache sums up
    nothing, and charges a repeated beginning like any other."""
    clock, total = Clock(), 0
    foreign = ForeignTime(SETTINGS, now_ns=clock)
    foreign.heard("vllm", ServerMetrics(cached_tokens=0))
    long = "a story that is told again and again " * 200
    charged: dict[int, int] = {}
    for turn in range(200):
        repeats = turn % 2
        text = long if repeats else f"{turn} {long}"
        cached = cached_each * repeats * (turn > 1)
        total += cached
        watched = Unwatched()
        with foreign.flight(watched, "vllm", 2100, {"prompt": text}):
            clock.now += (2100 - cached) * MS // 50
            for watched.tokens_seen in range(1, 34):
                clock.now += 10 * MS
                foreign.look(watched, "vllm", clock.now)
            usage = Usage(prompt_tokens=2100, completion_tokens=33)
            charged[repeats] = foreign.end(watched, "vllm", usage) or 0
        foreign.tick()
        if turn % 10 == 9:
            foreign.heard("vllm", ServerMetrics(cached_tokens=total))
    assert charged[0] == pytest.approx(42 * MS + 33 * 10 * MS, rel=0.1)
    assert charged[0] - charged[1] == pytest.approx((cached_each // 50) * MS, abs=gap * MS)


def test_prefix_cache_believes_what_answers_say_and_keeps_the_newest_beginnings() -> None:
    """One answer that tells of cached tokens is enough; old beginnings make room for new ones."""
    cache = PrefixCache()
    assert cache.sent((1, 2, 3, 4)) == 0.0
    assert cache.sent((1, 2, 8, 9)) == 0.5
    assert cache.cached(100, 0, 0.5) == 0, "nobody says that there is a cache"
    cache.expected()
    assert cache.cached(100, 0, 0.5) == 50
    cache.heard(0)
    assert cache.cached(1_000_000, 0, 1.0) > 0
    cache.heard(0)
    assert cache.cached(100, 0, 1.0) == 0, "a million might have been, and none was"
    assert cache.cached(100, 64, 0.0) == 64
    assert cache.cached(100, 0, 1.0) == 0
    for block in range(100, 40_000):
        cache.sent((block,))
    assert (cache.sent((100,)), cache.sent((39_999,))) == (0.0, 1.0)


_steps = st.lists(
    st.tuples(st.sampled_from(["come", "go", "fail"]), st.integers(0, 4), st.integers(0, 50)),
    max_size=50,
)


@given(_steps)
@settings(max_examples=100, deadline=None)
def test_charges_idle_and_lost_are_all_of_the_time(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """Through the machine's meter, whatever comes and goes: nothing twice, nothing left out."""
    clock = Clock()
    path = tmp_path_factory.mktemp("meter") / "m"
    meter = Meter(path, ["gateway-0"], now_ns=clock)
    meter.enter(0, os.getpid())
    began = clock.now
    slot = Meter(path, now_ns=clock).claim()
    foreign = ForeignTime(SETTINGS, {"gpu": slot}, now_ns=clock)
    flights: dict[int, Any] = {}
    charged = 0
    for act, number, ms in [*steps, *(("go", number, 1) for number in range(5))]:
        clock.now += ms * MS
        if act == "come" and number not in flights:
            watched = Unwatched()
            flights[number] = (watched, foreign.flight(watched, "vllm", 10))
            flights[number][1].__enter__()
        elif act != "come" and number in flights:
            watched, flight = flights.pop(number)
            if act == "go":
                usage = Usage(prompt_tokens=10, completion_tokens=1 + number)
                charged += foreign.end(watched, "vllm", usage) or 0
            flight.__exit__(None, None, None)
    found = meter.read()
    lost = found.slots["gateway-0"].lost_ns
    assert charged + found.idle_ns + lost + foreign.owed_ns == clock.now - began
    assert charged >= 0
    assert lost >= 0


def test_metrics_are_understood_under_everybody_s_names() -> None:
    """vLLM, SGLang, TGI and llama.cpp; models and labels are added up; junk is skipped."""
    vllm = """
# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{model_name="m"} 2.0
vllm:prompt_tokens_total{model_name="m"} 1.0e+06
vllm:request_decode_time_seconds_sum{model_name="m"} 12.5
vllm:something_else 5
not a metric at all
vllm:generation_tokens_total{model_name="m"} NaN
"""
    assert ServerMetrics.parse(vllm) == ServerMetrics(
        running=4, waiting=2, prompt_tokens=1e6, decode_seconds=12.5
    )
    assert (
        ServerMetrics.parse("sglang:num_running_reqs{} 7\nsglang:num_queue_reqs{} 1").running == 7
    )
    tgi = ServerMetrics.parse('tgi_batch_inference_duration_sum{method="prefill"} 3.5')
    assert tgi.prefill_seconds == 3.5
    llama = ServerMetrics.parse("llamacpp:requests_processing 2\nllamacpp:prompt_seconds_total 1.5")
    assert (llama.running, llama.prefill_seconds) == (2, 1.5)
    assert ServerMetrics.parse("") == ServerMetrics()


def test_metrics_teach_what_tokens_cost() -> None:
    """From two readings: so many prompt tokens took so long; a restart teaches nothing."""
    before = ServerMetrics(
        running=2, prompt_tokens=1000, cached_tokens=100, generated_tokens=50, requests=5,
        prefill_seconds=1.0, decode_seconds=2.0,
    )  # fmt: skip
    after = ServerMetrics(
        running=4, prompt_tokens=3000, cached_tokens=600, generated_tokens=150, requests=9,
        prefill_seconds=4.0, decode_seconds=7.0,
    )  # fmt: skip
    assert list(after.since(before)) == [
        ((4, 1500, 0, 0), 3.0),
        ((0, 0, 100, 300), 5.0),
    ]
    assert list(before.since(after)) == []
