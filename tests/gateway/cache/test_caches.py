"""Both caches together, on Redis and in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest

from backends.errors import BackendUnavailableError
from backends.wire import ChatCompletionRequest, decode
from gateway.cache.caches import CacheQuery, Caches
from gateway.cache.model import CachedAnswer, Store, StoreUnavailable
from gateway.cache.semantic import Encoded
from gateway.cache.store import MemoryStore, RedisStore
from gateway.settings import CacheSettings, ExactSettings, SemanticSettings
from tests.conftest import RedisServer

SETTINGS = CacheSettings(
    exact=ExactSettings(sampled=True, max_value_bytes=10_000),
    semantic=SemanticSettings(enabled=True, threshold=0.9, timeout_s=0.3),
)


class WordEncoder:
    """Bags of hashed words: deterministic, and close for texts that share most words."""

    def __init__(self, *, delay_s: float = 0.0, fails: bool = False) -> None:
        self.name = "words"
        self.revision = "words-1"
        self.calls = 0
        self.delay_s = delay_s
        self.fails = fails

    async def encode(self, text: str) -> Encoded:
        self.calls += 1
        await asyncio.sleep(self.delay_s)
        if self.fails:
            raise BackendUnavailableError("no encoder")
        vector = np.zeros(64, dtype=np.float32)
        for word in text.lower().replace("?", "").split():
            if word not in ("the", "please", "tell", "me", "is", "what"):
                vector[sum(word.encode()) % 64] += 1.0
        norm = float(np.linalg.norm(vector))
        return Encoded(vector / norm if norm else vector)


def query(text: str = "What is the capital of France?", **changes: Any) -> CacheQuery:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    fields = {"namespace": "team", "backend": "small", "revision": "r1", **changes}
    return CacheQuery(request=decode(ChatCompletionRequest, msgspec.json.encode(body)), **fields)


def answer(text: str = "Paris", request_id: str = "r-1") -> CachedAnswer:
    body = {"choices": [{"message": {"content": text}}]}
    return CachedAnswer(
        request_id=request_id, backend="small", model="small", body=body,
        cost_nano_usd=42, created_at=time.time(),
    )  # fmt: skip


async def remember(caches: Caches, asked: CacheQuery, given: CachedAnswer) -> None:
    lookup = await caches.lookup(asked)
    assert lookup.verdict == "miss"
    caches.store(lookup, given)
    await caches.settled()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore()
    else:
        made = RedisStore(request.getfixturevalue("redis_server").url, timeout_s=2.0)
    yield made
    await made.aclose()


async def test_repeat_is_answered_exactly(store: Store) -> None:
    """The same request gets the stored answer, with what it cost; the encoder is not asked."""
    encoder = WordEncoder()
    caches = Caches(store, SETTINGS, encoder)
    await remember(caches, query(), answer())
    asked = encoder.calls
    found = await caches.lookup(query())
    assert found.verdict == "exact"
    assert found.hit is not None
    assert found.hit.answer == msgspec.structs.replace(
        answer(), created_at=found.hit.answer.created_at
    )
    assert encoder.calls == asked


async def test_repeat_is_answered_while_the_answer_is_being_stored(store: Store) -> None:
    """Who asks again at once need not wait for the store, and nothing is kept longer than that."""
    caches = Caches(store, SETTINGS, WordEncoder())
    caches.store(await caches.lookup(query()), answer())
    again = await caches.lookup(query())
    assert (again.verdict, again.hit and again.hit.answer.body) == ("exact", answer().body)
    await caches.settled()
    await store.delete(*[key async for key in store.scan("")])
    assert (await caches.lookup(query())).verdict == "miss"


async def test_other_words_are_answered_semantically(store: Store) -> None:
    """A paraphrase gets the answer with its similarity; a look-alike does not."""
    caches = Caches(store, SETTINGS, WordEncoder())
    await remember(caches, query(), answer())
    found = await caches.lookup(query("Please tell me the capital of France"))
    assert found.verdict == "semantic"
    assert found.hit is not None
    assert found.hit.similarity is not None
    assert found.hit.similarity >= 0.9
    assert (await caches.lookup(query("What is the capital of Spain?"))).verdict == "miss"


async def test_guard_refuses_what_the_vectors_confuse(store: Store) -> None:
    """A near vector with another number is a miss, and is counted."""
    caches = Caches(store, SETTINGS, WordEncoder())
    await remember(caches, query("add seven apples green round sweet ripe 7 to basket"), answer())
    found = await caches.lookup(query("add seven apples green round sweet ripe 8 to basket"))
    assert found.verdict == "miss"
    assert (await caches.state())["guarded"] == 1


async def test_second_process_and_restart_see_the_same_entries(store: Store) -> None:
    """What one gateway stored, another finds by meaning, also when it has looked before."""
    one, other = Caches(store, SETTINGS, WordEncoder()), Caches(store, SETTINGS, WordEncoder())
    assert (await other.lookup(query())).verdict == "miss"
    await remember(one, query(), answer())
    assert (await other.lookup(query("tell me the capital of France"))).verdict == "semantic"
    restarted = Caches(store, SETTINGS, WordEncoder())
    assert (await restarted.lookup(query("tell me the capital of France"))).verdict == "semantic"


@pytest.mark.parametrize(
    "changes", [{"namespace": "other"}, {"backend": "nano"}, {"revision": "r2"}]
)
async def test_nobody_else_gets_the_answer(store: Store, changes: dict[str, Any]) -> None:
    """Another team, backend or model revision misses in both caches."""
    caches = Caches(store, SETTINGS, WordEncoder())
    await remember(caches, query(), answer())
    assert (await caches.lookup(query(**changes))).verdict == "miss"
    assert (
        await caches.lookup(query("tell me the capital of France", **changes))
    ).verdict == "miss"


async def test_rules_tighten_the_lookup(store: Store) -> None:
    """off asks neither cache, exact only the exact one, refresh writes without reading."""
    caches = Caches(store, SETTINGS, WordEncoder())
    await remember(caches, query(), answer())
    assert (await caches.lookup(query(rule="off"))).verdict == "off"
    assert (
        await caches.lookup(query("tell me the capital of France", rule="exact"))
    ).verdict == "miss"
    fresh = await caches.lookup(query(refresh=True))
    assert fresh.verdict == "miss"
    caches.store(fresh, answer("Paris!", "r-2"))
    await caches.settled()
    found = await caches.lookup(query())
    assert found.hit is not None
    assert found.hit.answer.request_id == "r-2"


async def test_late_encoder_is_a_miss_and_still_learns(store: Store) -> None:
    """A lookup does not wait beyond its time; the answer is stored under its meaning anyway."""
    encoder = WordEncoder(delay_s=0.6)
    caches = Caches(store, SETTINGS, encoder)
    began = time.monotonic()
    await remember(caches, query(), answer())
    assert time.monotonic() - began < 1.8
    encoder.delay_s = 0.0
    assert (await caches.lookup(query("tell me the capital of France"))).verdict == "semantic"


async def test_dead_encoder_leaves_the_exact_cache_working(store: Store) -> None:
    """Without an encoder there are exact hits and no errors."""
    caches = Caches(store, SETTINGS, WordEncoder(fails=True))
    await remember(caches, query(), answer())
    assert (await caches.lookup(query())).verdict == "exact"


async def test_oversized_answer_is_not_stored(store: Store) -> None:
    """An answer above the bound is passed on but not kept in the exact cache."""
    caches = Caches(store, SETTINGS)
    await remember(caches, query(), answer("x" * 20_000))
    assert (await caches.lookup(query())).verdict == "miss"


async def test_clear_forgets_one_namespace(store: Store) -> None:
    """After clearing a team's entries that team misses, others still hit."""
    caches = Caches(store, SETTINGS, WordEncoder())
    await remember(caches, query(), answer())
    await remember(caches, query(namespace="other"), answer())
    assert await caches.clear("team") == 3
    assert (await caches.lookup(query())).verdict == "miss"
    assert (await caches.lookup(query("tell me the capital of France"))).verdict == "miss"
    assert (await caches.lookup(query(namespace="other"))).verdict == "exact"


async def test_requests_pass_while_redis_is_gone(redis_server: RedisServer) -> None:
    """Lookups miss, stores are dropped, nothing raises, and caching comes back by itself."""
    store = RedisStore(redis_server.url, timeout_s=0.3)
    caches = Caches(store, SETTINGS, WordEncoder())
    await remember(caches, query(), answer())
    redis_server.stop()
    lost = await caches.lookup(query())
    assert lost.verdict == "miss"
    caches.store(lost, answer())
    await caches.settled()
    assert (await caches.state())["store"] == "unavailable"
    redis_server.start()
    await asyncio.sleep(1.1)
    await remember(caches, query(refresh=True), answer())
    assert (await caches.lookup(query())).verdict == "exact"
    await caches.aclose()


class LogsAway(MemoryStore):
    """A store that answers keys but loses its logs."""

    async def read(self, log: str, after: str) -> list[tuple[str, bytes]]:
        """Too late."""
        raise StoreUnavailable("not within 0.25 s")


@pytest.mark.parametrize("refresh", [False, True])
async def test_encoder_s_work_is_known_whatever_becomes_of_the_look(refresh: bool) -> None:
    """A lost store, or a caller who only writes: the question is encoded, once, and is charged."""
    encoder = WordEncoder()
    caches = Caches(LogsAway(), SETTINGS, encoder)
    found = await caches.lookup(query(refresh=refresh))
    assert found.verdict == "miss"
    assert found.encoding is not None
    caches.store(found, answer())
    await caches.settled()
    assert (await found.encoding).vector.size
    assert encoder.calls == 1
