"""Reuse of KV: full blocks found by a hash of their tokens and of all tokens before them."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from backends.engine.block_pool import BlockPool
from backends.engine.request import Request

_HASH_BYTES: Final = 16


class PrefixCache:
    """An index from block hash to block; the pool keeps the blocks and decides what is evicted.

    The hash is cryptographic, because a collision would show one caller another's text, and is
    chained from the request's `cache_salt`, so sequences of different salts never meet.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        pool.on_evict = self._forget
        self.queried_tokens = 0
        """Tokens of sequences that looked for a cached prefix."""
        self.hit_tokens = 0
        """Of those, found."""

    def __len__(self) -> int:
        return len(self._block_of)

    def match(self, request: Request) -> list[int]:
        """The cached blocks of the request's longest known prefix; no references are taken.

        At least one known token is left out: it has to be computed, to have logits.
        """
        most = (request.num_tokens - 1) // self._block_size
        self._hash_blocks(request, most)
        found = []
        for digest in request.block_hashes[:most]:
            block_id = self._block_of.get(digest)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def count_query(self, request: Request, hit_blocks: int) -> None:
        """Count one admission for the hit rate."""
        self.queried_tokens += request.num_tokens
        self.hit_tokens += hit_blocks * self._block_size

    def offer(self, request: Request) -> None:
        """Index the request's blocks that became full of computed, accepted tokens."""
        full = request.num_computed_tokens // self._block_size
        self._hash_blocks(request, full)
        for place in range(request.num_cached_blocks, full):
            digest = request.block_hashes[place]
            # Another sequence may have computed the same block in the same step: one is enough.
            if digest not in self._block_of:
                block_id = request.block_ids[place]
                self._block_of[digest] = block_id
                self._hash_of[block_id] = digest
                self._pool.keep(block_id)
        request.num_cached_blocks = full

    def clear(self) -> None:
        """Forget everything: the KV is no longer what the hashes say."""
        self._block_of.clear()
        self._hash_of.clear()
        self._pool.forget_kept()

    def _forget(self, block_id: int) -> None:
        del self._block_of[self._hash_of.pop(block_id)]

    def _hash_blocks(self, request: Request, count: int) -> None:
        hashes, size = request.block_hashes, self._block_size
        for place in range(len(hashes), count):
            parent = hashes[-1] if hashes else _root(request.cache_salt)
            start = place * size
            hashes.append(_block_hash(parent, request.token_ids[start : start + size]))


def _root(salt: str) -> bytes:
    return blake2b(salt.encode(), digest_size=_HASH_BYTES).digest()


def _block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=_HASH_BYTES).digest()
