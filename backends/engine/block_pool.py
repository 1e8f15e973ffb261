"""Who holds which KV block: reference counts, and the order in which free blocks are reused."""

from collections.abc import Callable, Sequence


def _ignore(block_id: int) -> None:
    """What happens on eviction while there is no prefix cache."""


class BlockPool:
    """Hands out the blocks [0, num_blocks) of the KV cache.

    A block is used (reference count ≥ 1) or free. A free block may still hold KV worth reusing
    (`keep`); such blocks are handed out last, the longest unused first, and `on_evict` is told.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.on_evict: Callable[[int], None] = _ignore
        self._references = [0] * num_blocks
        self._kept: set[int] = set()
        # Blank blocks are a stack; kept ones a dict, whose order is the order of release.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._reusable: dict[int, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could hand out now, those with reusable KV included."""
        return len(self._blank) + len(self._reusable)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_blocks - self.num_free

    def references(self, block_id: int) -> int:
        """How many sequences hold the block."""
        return self._references[block_id]

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one reference; the caller checked `num_free`."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        first = max(0, len(self._blank) - count)
        taken = self._blank[first:]
        del self._blank[first:]
        taken.reverse()
        while len(taken) < count:
            block_id = next(iter(self._reusable))
            del self._reusable[block_id]
            self._kept.discard(block_id)
            self.on_evict(block_id)
            taken.append(block_id)
        for block_id in taken:
            self._references[block_id] = 1
        return taken

    def share(self, block_ids: Sequence[int]) -> None:
        """Take one more reference to each block; a free block must be a kept one."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                del self._reusable[block_id]
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Give back one reference to each block.

        The last block is given back first: a later block is of no use without those before it,
        so it should also be reused first.
        """
        for block_id in reversed(block_ids):
            left = self._references[block_id] - 1
            assert left >= 0, f"block {block_id} released more often than taken"
            self._references[block_id] = left
            if left == 0:
                if block_id in self._kept:
                    self._reusable[block_id] = None
                else:
                    self._blank.append(block_id)

    def keep(self, block_id: int) -> None:
        """The used block holds KV worth reusing once it is free."""
        assert self._references[block_id] > 0, f"block {block_id} is free"
        self._kept.add(block_id)

    def forget_kept(self) -> None:
        """No block's KV is worth reusing any more: weights or adapters changed, a step failed."""
        self._kept.clear()
        self._blank.extend(self._reusable)
        self._reusable.clear()
