"""Replicas of one backend: whose turn, who is ejected, where prefixes are warm."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backends.client.breaker import BreakerSettings
from backends.client.http_replica import Replica
from backends.client.openai_http import OpenAIHTTPBackend
from backends.client.prefixes import BLOCK_BYTES, prefix_blocks
from backends.client.replica_choice import ReplicaChoice
from backends.client.replica_set import ReplicaSet
from backends.contract import GenerateRequest
from backends.errors import (
    BackendOverloadedError,
    BackendTimeoutError,
    BackendUnavailableError,
    InvalidRequestError,
)
from tests.backends.raw_upstream import http, raw_upstream


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def chat(*turns: str) -> dict[str, Any]:
    """A conversation, user and assistant in turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return {"model": "m", "messages": messages}


def asked(body: dict[str, Any], request_id: str = "r", **fields: Any) -> GenerateRequest:
    return GenerateRequest(request_id=request_id, endpoint="chat/completions", body=body, **fields)


def test_blocks_of_a_later_turn_begin_with_those_of_the_earlier() -> None:
    """Equal beginnings have equal digests, other ones do not, however long what follows."""
    question, answer = "why? " * 300, "because " * 200
    first = prefix_blocks(chat(question))
    later = prefix_blocks(chat(question, answer, "and then?"))
    assert len(first) >= 5
    assert later[: len(first)] == first
    assert not set(prefix_blocks(chat("How? " + question))) & set(first)
    assert prefix_blocks({"prompt": "x" * BLOCK_BYTES}) != prefix_blocks({"prompt": "y" * 256})
    parts = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    assert len(prefix_blocks({"messages": parts})) >= 5
    assert prefix_blocks({"prompt": [1, 2, 3]}) == prefix_blocks({}) == ()


def test_conversation_stays_where_it_is_warm() -> None:
    """Later turns follow the first one; a gateway that has seen none of it sends it there, too."""
    here, there = (ReplicaChoice(["a", "b"], clock=Clock()) for _ in range(2))
    agree = 0
    for number in range(40):
        blocks = prefix_blocks(chat(f"{number} why? " * 200))
        replica = here.choose(blocks, 500, (0, 1))
        here.begin(replica, blocks, 500)
        here.end(replica, 500)
        longer = (*blocks, number, number + 1)
        assert here.choose(longer, 700, (0, 1)) == replica
        agree += there.choose(longer, 700, (0, 1)) == replica
    assert agree >= 36


def test_short_prompts_go_where_least_is_under_way() -> None:
    """Nothing worth keeping: least outstanding tokens."""
    choice = ReplicaChoice(["a", "b", "c"], clock=Clock())
    choice.begin(0, (), 5000)
    choice.begin(1, (), 3000)
    assert choice.choose((), 10, (0, 1, 2)) == 2
    choice.end(0, 5000)
    choice.begin(2, (), 4000)
    assert choice.choose((), 10, (0, 1)) == 0


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_no_replica_gets_much_more_than_its_share(seed: int, count: int) -> None:
    """Even if all requests share one prefix: bounded loads."""
    chance, choice = (
        random.Random(seed),
        ReplicaChoice([f"r{n}" for n in range(count)], clock=Clock()),
    )
    got = [0] * count
    for _ in range(600):
        tokens = chance.randrange(200, 4000)
        replica = choice.choose((1, 2, 3), tokens, range(count))
        choice.begin(replica, (1, 2, 3), tokens)
        choice.end(replica, tokens)
        got[replica] += tokens
    slack = 64 * 64 + 4000
    assert max(got) <= 1.25 * sum(got) / count + slack


def test_restarted_replica_has_nothing_warm() -> None:
    """After it was away its beginnings are forgotten."""
    choice = ReplicaChoice(["a", "b"], clock=Clock())
    choice.begin(1, (1, 2, 3), 100)
    assert choice.warm((1, 2, 3, 4)) == [0, 3 * 64]
    choice.forget(1)
    assert choice.warm((1, 2, 3)) == [0, 0]


def replicas(count: int = 2, clock: Clock | None = None) -> ReplicaSet:
    made = [
        Replica(f"http://r{n}.test/v1", None, BreakerSettings(failures_to_open=3))
        for n in range(count)
    ]
    return ReplicaSet(made, clock=clock or Clock())


def order(them: ReplicaSet, body: dict[str, Any] | None = None) -> list[int]:
    request = asked(body or chat("hi"))
    return them.in_order(request, *them.size_of(request, 100))


def fail(them: ReplicaSet, number: int, error: Exception | None, times: int = 1) -> None:
    for _ in range(times):
        place = them.take(number, asked(chat("hi")), (), 1)
        place.failed(error) if error else place.answered()
        place.leave()


async def test_failing_address_is_ejected_told_and_tried_again() -> None:
    """Three failures in a row: asked last; after the pause one request may try it."""
    clock, told = Clock(), list[str]()
    them = replicas(2, clock)
    them.on_breaker = told.append
    fail(them, 0, BackendUnavailableError("down"), 3)
    assert {order(them)[0] for _ in range(10)} == {1}
    assert sorted(order(them)) == [0, 1], "never left out altogether"
    assert told == ["http://r0.test/v1"]
    clock.now += 1.1
    place = them.take(0, asked(chat("trial")), (), 1)
    assert order(them)[0] == 1, "one trial at a time"
    place.answered()
    place.leave()
    assert told == ["http://r0.test/v1"] * 2
    assert them.replicas[0].breaker.state(clock.now) == "closed"


async def test_outlier_is_ejected_although_it_sometimes_answers() -> None:
    """An address that fails most requests while the other one is well."""
    them = replicas()
    fail(them, 1, None, 20)
    for _ in range(30):
        fail(them, 0, BackendTimeoutError("silent"), 2)
        fail(them, 0, None)
        if them.replicas[0].breaker.opened:
            break
    else:
        pytest.fail("never ejected")


@pytest.mark.parametrize("error", [InvalidRequestError("n"), BackendOverloadedError("429")])
async def test_what_is_not_its_fault_ejects_nobody(error: Exception) -> None:
    """Bad requests and full queues."""
    them = replicas()
    fail(them, 0, error, 10)
    assert not them.replicas[0].breaker.failures


async def test_probe_brings_an_address_back_cold() -> None:
    """Not ready: last; ready again: as new, with nothing warm."""
    them = replicas()
    long = chat("why? " * 500)
    blocks, _ = them.size_of(asked(long), 100)
    them.choice.begin(0, blocks, 10)
    them.probed(0, False)
    assert {order(them, long)[0] for _ in range(5)} == {1}
    fail(them, 0, BackendUnavailableError("down"), 3)
    them.probed(0, True)
    assert not them.replicas[0].breaker.opened
    assert them.choice.warm(blocks) == [0, 0]


async def test_second_call_goes_beside_the_first() -> None:
    """A hedge never waits in the same place as the call that is slow."""
    them = replicas()
    for number in (0, 1):
        them.at["slow"] = number
        request = asked(chat("why? " * 500), "slow-hedge", beside="slow")
        assert them.in_order(request, *them.size_of(request, 100))[0] == 1 - number


VLLM = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 5.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
"""
SGLANG = b"""sglang:num_running_reqs{model_name="m",tp_rank="0"} 7
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 3
sglang:token_usage{model_name="m"} 0.75
"""
TGI = b"tgi_batch_current_size 7\ntgi_queue_size 3\n"
LLAMA = b"llamacpp:requests_processing 7\nllamacpp:requests_deferred 3\n"


@pytest.mark.parametrize(
    ("metrics", "kv"), [(VLLM, 0.75), (SGLANG, 0.75), (TGI, None), (LLAMA, None)]
)
async def test_probe_reads_the_load_of_foreign_servers(metrics: bytes, kv: float | None) -> None:
    """What others have there counts, under the names of each engine."""
    models = http("200 OK", b'{"data": [{"id": "m"}]}')
    async with raw_upstream(http("200 OK", metrics)) as up:
        backend = OpenAIHTTPBackend("b", [up.url], model="m", max_concurrency=16)
        up_by_path: Sequence[tuple[bytes, bytes]] = (
            (b"/v1/models", models),
            (b"/health", http("200 OK", b"")),
        )
        up.by_path.extend(up_by_path)
        health = await backend.probe()
        assert (health.ready, health.running, health.waiting) == (True, 7, 3)
        assert health.kv_usage_ratio == kv
        await backend.aclose()


async def test_server_without_metrics_is_asked_for_them_once() -> None:
    """A provider's 404 is not asked for every two seconds."""
    async with raw_upstream(http("404 Not Found", b"{}")) as up:
        backend = OpenAIHTTPBackend("b", [up.url], model="m")
        for _ in range(3):
            assert (await backend.probe()).ready
        assert sum(b"/metrics" in request for request in up.requests) == 1
        await backend.aclose()
