"""KV is reused exactly where tokens, all before them, and the salt are the same."""

from toy_engine import greedy

from backends.engine.block_pool import BlockPool
from backends.engine.prefix_cache import PrefixCache
from backends.engine.request import Request


def request_for(prompt: list[int], salt: str = "") -> Request:
    """A sequence with this prompt."""
    return Request(
        request_id="r",
        prompt_token_ids=prompt,
        params=greedy(),
        max_tokens=16,
        cache_salt=salt,
    )


def computed(cache: PrefixCache, pool: BlockPool, prompt: list[int], salt: str = "") -> Request:
    """A sequence whose prompt was computed and offered, and which then ended."""
    request = request_for(prompt, salt)
    request.block_ids = pool.allocate(-(-len(prompt) // 4))
    request.num_computed_tokens = len(prompt)
    cache.offer(request)
    pool.release(request.block_ids)
    return request


def test_prefix_cache_finds_full_blocks_of_the_same_beginning() -> None:
    """Full blocks match up to the first difference; a started block does not."""
    pool = BlockPool(16)
    cache = PrefixCache(pool, 4)
    first = computed(cache, pool, list(range(10)))
    assert cache.match(request_for([*range(8), 99, 99, 99])) == first.block_ids[:2]
    assert cache.match(request_for([*range(7), 99, 8, 9])) == first.block_ids[:1]
    assert cache.match(request_for([9, *range(1, 10)])) == []


def test_prefix_cache_leaves_the_last_token_to_compute() -> None:
    """A prompt that is cached whole still has its last block computed, to have logits."""
    pool = BlockPool(16)
    cache = PrefixCache(pool, 4)
    first = computed(cache, pool, list(range(8)))
    assert cache.match(request_for(list(range(8)))) == first.block_ids[:1]
    assert cache.match(request_for(list(range(9)))) == first.block_ids[:2]


def test_prefix_cache_same_tokens_after_another_beginning_do_not_match() -> None:
    """A block's hash covers all before it."""
    pool = BlockPool(16)
    cache = PrefixCache(pool, 4)
    computed(cache, pool, [1, 1, 1, 1, 5, 6, 7, 8])
    assert cache.match(request_for([5, 6, 7, 8, 9])) == []


def test_prefix_cache_salts_are_separate() -> None:
    """Tenants with different salts share nothing."""
    pool = BlockPool(16)
    cache = PrefixCache(pool, 4)
    computed(cache, pool, list(range(8)), salt="team-a")
    assert cache.match(request_for(list(range(9)), salt="team-b")) == []
    assert len(cache.match(request_for(list(range(9)), salt="team-a"))) == 2


def test_prefix_cache_forgets_evicted_blocks() -> None:
    """A block handed out anew is not found under its old tokens."""
    pool = BlockPool(3)
    cache = PrefixCache(pool, 4)
    computed(cache, pool, list(range(8)))
    pool.allocate(2)  # the blank one, then the sequence's last
    assert len(cache.match(request_for(list(range(9))))) == 1
    pool.allocate(1)
    assert cache.match(request_for(list(range(9)))) == []
    assert len(cache) == 0


def test_prefix_cache_clear_makes_blocks_blank() -> None:
    """After clear nothing matches and nothing is evicted."""
    pool = BlockPool(4)
    cache = PrefixCache(pool, 4)
    computed(cache, pool, list(range(8)))
    cache.clear()
    assert cache.match(request_for(list(range(9)))) == []
    assert len(pool.allocate(4)) == 4
