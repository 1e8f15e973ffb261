"""The block pool never loses, doubles or leaks a block."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.engine.block_pool import BlockPool


def test_block_pool_hands_out_blank_blocks_before_reusable_ones() -> None:
    """KV worth reusing is overwritten last, and then the longest unused first."""
    pool = BlockPool(4)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    old, new = pool.allocate(1), pool.allocate(1)
    pool.keep(old[0])
    pool.keep(new[0])
    pool.release(old)
    pool.release(new)
    pool.allocate(2)
    assert evicted == []
    assert pool.allocate(2) == [old[0], new[0]]
    assert evicted == [old[0], new[0]]


def test_block_pool_gives_up_a_sequence_from_its_end() -> None:
    """Of one released sequence the last block is evicted first: prefixes outlive endings."""
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block_id in blocks:
        pool.keep(block_id)
    pool.release(blocks)
    assert pool.allocate(3) == list(reversed(blocks))


def test_block_pool_sharing_revives_a_free_block() -> None:
    """A kept block that is shared again is used, not free."""
    pool = BlockPool(2)
    block = pool.allocate(1)
    pool.keep(block[0])
    pool.release(block)
    assert pool.num_free == 2
    pool.share(block)
    assert (pool.num_free, pool.references(block[0])) == (1, 1)


class BlockPoolMachine(RuleBasedStateMachine):
    """Sequences allocate, share, keep and release at random; a model counts references."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(11)
        self.pool.on_evict = self.evict
        self.held: list[list[int]] = []
        self.kept: set[int] = set()

    def evict(self, block_id: int) -> None:
        """Only free blocks with reusable KV are evicted."""
        assert block_id in self.kept
        assert all(block_id not in blocks for blocks in self.held)
        self.kept.remove(block_id)

    @rule(count=st.integers(0, 5))
    def allocate(self, count: int) -> None:
        """Fresh blocks are in nobody's hands."""
        count = min(count, self.pool.num_free)
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count
        assert not set(blocks) & {b for other in self.held for b in other}
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        """A held block becomes worth reusing."""
        blocks = data.draw(st.sampled_from(self.held))
        if blocks:
            block_id = data.draw(st.sampled_from(blocks))
            self.pool.keep(block_id)
            self.kept.add(block_id)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        """A kept block, used or free, is taken by one more."""
        block_id = data.draw(st.sampled_from(sorted(self.kept)))
        self.pool.share([block_id])
        self.held.append([block_id])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A sequence ends."""
        place = data.draw(st.integers(0, len(self.held) - 1))
        self.pool.release(self.held.pop(place))

    @rule()
    def forget_kept(self) -> None:
        """All KV is void; held blocks stay held."""
        self.pool.forget_kept()
        self.kept.clear()

    @invariant()
    def adds_up(self) -> None:
        """Free and used blocks are all blocks; references are counted right."""
        used = {b for blocks in self.held for b in blocks}
        assert self.pool.num_used == len(used)
        assert self.pool.num_free + self.pool.num_used == self.pool.num_blocks
        for block_id in range(self.pool.num_blocks):
            holders = sum(blocks.count(block_id) for blocks in self.held)
            assert self.pool.references(block_id) == holders


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
