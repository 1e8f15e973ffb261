"""Redis and memory keep the same promises."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.cache.model import Store, StoreUnavailable
from gateway.cache.store import MemoryStore, RedisStore
from tests.conftest import RedisServer


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore()
    else:
        made = RedisStore(request.getfixturevalue("redis_server").url, timeout_s=2.0)
    yield made
    await made.aclose()


async def test_store_returns_what_was_set(store: Store) -> None:
    """A value is read back byte for byte, and a missing key is None."""
    await store.set("a", b"\x00\xff", ttl_s=60)
    assert await store.get("a") == b"\x00\xff"
    assert await store.get("b") is None


async def test_store_forgets_after_its_time(store: Store) -> None:
    """An entry is gone once its time to live has passed."""
    await store.set("a", b"1", ttl_s=0.05)
    await asyncio.sleep(0.1)
    assert await store.get("a") is None


async def test_store_reads_a_log_from_any_position(store: Store) -> None:
    """A reader gets every entry exactly once, in order, whether it starts early or late."""
    await store.append("log", b"1", max_entries=10, ttl_s=60)
    first = await store.read("log", "0")
    second = await store.append("log", b"2", max_entries=10, ttl_s=60)
    await store.append("log", b"3", max_entries=10, ttl_s=60)
    assert [entry for _, entry in first] == [b"1"]
    assert [entry for _, entry in await store.read("log", first[-1][0])] == [b"2", b"3"]
    assert [entry for _, entry in await store.read("log", second)] == [b"3"]
    assert [entry for _, entry in await store.read("log", "0")] == [b"1", b"2", b"3"]


async def test_store_bounds_a_log(store: Store) -> None:
    """The oldest entries go when a log is longer than allowed."""
    for number in range(6):
        await store.append("log", b"%d" % number, max_entries=3, ttl_s=60)
    assert [entry for _, entry in await store.read("log", "0")] == [b"3", b"4", b"5"]


async def test_store_deletes_what_a_scan_finds(store: Store) -> None:
    """A namespace is found by its prefix, logs too, and nothing else is touched."""
    await store.set("ns*:a", b"1", ttl_s=60)
    await store.append("ns*:log", b"1", max_entries=3, ttl_s=60)
    await store.set("nsx:a", b"1", ttl_s=60)
    found = [key async for key in store.scan("ns*:")]
    assert sorted(found) == ["ns*:a", "ns*:log"]
    assert await store.delete(*found) == 2
    assert await store.get("nsx:a") == b"1"


async def test_memory_store_stays_within_its_bytes() -> None:
    """Least recently used values go first when the bound is reached."""
    store = MemoryStore(max_bytes=30)
    await store.set("a", b"x" * 10, ttl_s=60)
    await store.set("b", b"x" * 10, ttl_s=60)
    await store.get("a")
    await store.set("c", b"x" * 15, ttl_s=60)
    assert await store.get("b") is None
    assert await store.get("a") is not None


async def test_redis_store_says_so_and_recovers(redis_server: RedisServer) -> None:
    """A dead Redis raises StoreUnavailable, quickly; a returned one is used again by itself."""
    store = RedisStore(redis_server.url, timeout_s=0.5)
    await store.set("a", b"1", ttl_s=60)
    redis_server.stop()
    with pytest.raises(StoreUnavailable):
        await store.get("a")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(100):
        with pytest.raises(StoreUnavailable):
            await store.get("a")
    assert loop.time() - began < 0.5, "an outage must cost a request next to nothing"
    assert not await store.ping()
    redis_server.start()
    await asyncio.sleep(1.1)
    await store.set("a", b"2", ttl_s=60)
    assert await store.get("a") == b"2"
    await store.aclose()
