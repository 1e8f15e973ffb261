"""paged_attention: every implementation against the reference, and the reference against torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import PagedBatch, Runner, encode, paged_batch, reference
from tolerances import assert_close
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels import native
from kernels.errors import KernelError
from kernels.paged_attention import paged_attention

NATIVE = Runner("native", "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

BATCHES = {
    "one_token": [(1, 1)],
    "one_decode": [(1, 13)],
    "full_block": [(1, 8)],
    "decode": [(1, 3), (1, 17), (1, 1), (1, 8)],
    "prefill": [(7, 7)],
    "chunk": [(5, 12)],
    "long_chunk": [(19, 33)],
    "verify": [(4, 9), (4, 11), (4, 4)],
    "mixed": [(1, 9), (6, 6), (3, 14), (1, 5), (11, 20)],
    "idle_rows": [(0, 5), (1, 6), (0, 0), (2, 7)],
    "long_table": [(1, 61), (1, 60)],
}


@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
def test_paged_attention_equals_the_reference(
    runner: Runner, sequences: list[tuple[int, int]]
) -> None:
    """Decode, prefill, verification and mixtures give the reference's numbers, and no NaN."""
    batch = paged_batch(sequences)
    out = batch.run(runner)
    assert_close(out, batch.run(reference))
    assert out.is_contiguous()


@pytest.mark.parametrize(("query_heads", "kv_heads"), [(1, 1), (3, 3), (4, 1), (6, 2), (5, 1)])
def test_paged_attention_maps_query_heads_to_key_heads(
    runner: Runner, query_heads: int, kv_heads: int
) -> None:
    """Any ratio of query heads to key heads reads the right key head."""
    batch = paged_batch(BATCHES["mixed"], query_heads=query_heads, kv_heads=kv_heads)
    assert_close(batch.run(runner), batch.run(reference))


@pytest.mark.parametrize(("head_dim", "block_size"), [(8, 1), (24, 5), (64, 16), (80, 32)])
def test_paged_attention_takes_odd_sizes(runner: Runner, head_dim: int, block_size: int) -> None:
    """Head and block sizes need not be powers of two."""
    batch = paged_batch([(1, 18), (1, 3), (5, 7)], head_dim=head_dim, block_size=block_size)
    assert_close(batch.run(runner), batch.run(reference))


@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q_dtype", DTYPES, ids=str)
def test_paged_attention_returns_the_dtype_of_q(
    runner: Runner, q_dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    """Queries and cache may differ in dtype; the result has the queries' dtype."""
    batch = paged_batch([(1, 9), (1, 12), (3, 6)], q_dtype=q_dtype, cache_dtype=cache_dtype)
    if cache_dtype == torch.float32:
        assert_close(batch.run(runner), batch.run(reference))
    else:
        rounded = batch.run(reference).to(cache_dtype)
        assert batch.run(runner).dtype == q_dtype
        assert_close(batch.run(runner).to(cache_dtype), rounded)


def test_paged_attention_takes_an_empty_batch(runner: Runner) -> None:
    """No sequences and no tokens give an empty result."""
    assert paged_batch([]).run(runner).shape == (0, 4, 16)


def test_paged_attention_gives_zeros_where_nothing_is_visible(runner: Runner) -> None:
    """A padding row, whose context is shorter than its queries, is zero and never NaN."""
    batch = paged_batch([(1, 0), (1, 5), (3, 2), (9, 0), (12, 4)])
    out = batch.run(runner)
    assert_close(out, batch.run(reference))
    assert not out[0].any()


def test_paged_attention_takes_strided_queries(runner: Runner) -> None:
    """Queries may be a slice of a fused QKV projection."""
    batch = paged_batch([(1, 9), (4, 6), (1, 7)])
    fused = torch.full((6, 7, 16), torch.nan)
    fused[:, :4] = batch.q
    strided = batch.but(q=fused[:, :4])
    assert_close(strided.run(runner), batch.run(reference))


def test_paged_attention_takes_bounds_larger_than_the_batch(runner: Runner) -> None:
    """The two maxima only size a launch: larger ones change nothing."""
    batch = paged_batch([(1, 9), (4, 6)])
    loose = batch.but(max_query_len=9, max_context_len=12)
    assert_close(loose.run(runner), batch.run(reference))


LONG = [(1, 300), (1, 256), (1, 5), (3, 700), (1, 257), (0, 0), (1, 0)]
"""Contexts that are split over programs, beside some that are not."""


def _tree(queries: int) -> Tensor:
    """Query 0 is the root; each other one hangs under an earlier one, and sees its ancestors."""
    mask = torch.eye(queries, dtype=torch.bool)
    for node in range(1, queries):
        mask[node] |= mask[(node - 1) // 2]
    return mask


VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "window": {"window": 7},
    "window_of_one": {"window": 1},
    "soft_cap": {"soft_cap": 1.5},
    "sinks": {"sinks": torch.tensor([-1.0, 0.5, 3.0, 0.0])},
    "all": {"window": 300, "soft_cap": 30.0, "sinks": torch.zeros(4)},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("sequences", [BATCHES["mixed"], BATCHES["idle_rows"], LONG], ids=len)
def test_paged_attention_variants_equal_the_reference(
    runner: Runner, sequences: list[tuple[int, int]], variant: dict[str, object]
) -> None:
    """Windows, caps and sinks, alone and together, over short contexts and split ones."""
    batch = paged_batch(sequences, kv_heads=2, block_size=16).but(**variant)
    assert_close(batch.run(runner), batch.run(reference))


@pytest.mark.parametrize("prefix", [0, 3, 600])
@pytest.mark.parametrize("window", [None, 5])
def test_paged_attention_verifies_a_tree(runner: Runner, prefix: int, window: int | None) -> None:
    """A drafted token sees the prefix and its own ancestors, later tiles of keys included."""
    sequences = [(6, prefix + 6), (1, 9), (4, 4)]
    mask = torch.zeros(11, 8, dtype=torch.bool)
    for first, queries in ((0, 6), (6, 1), (7, 4)):
        mask[first : first + queries, :queries] = _tree(queries)
    batch = paged_batch(sequences, block_size=8).but(tree_mask=mask, window=window)
    out = batch.run(runner)
    assert_close(out, batch.run(reference))
    if window is None:
        leaf = [0, 2, 5]  # the path of node 5: its keys alone, in order, give the same
        path = _without_branches(batch, prefix, leaf)
        assert_close(out[5:6], path.run(reference)[-1:])


def _without_branches(batch: PagedBatch, prefix: int, nodes: list[int]) -> PagedBatch:
    """The first sequence with the keys of some queries only, as a plain decode of the last."""
    blocks = batch.block_tables[0].long().clamp(min=0)
    kept = [*range(prefix), *(prefix + node for node in nodes)]
    keys, values = (
        cache[blocks].flatten(0, 1)[kept].unsqueeze(0) for cache in (batch.k_cache, batch.v_cache)
    )
    return PagedBatch(
        q=batch.q[nodes[-1]].unsqueeze(0),
        k_cache=keys.contiguous(),
        v_cache=values.contiguous(),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        query_start_lens=torch.tensor([0, 1], dtype=torch.int32),
        context_lens=torch.tensor([len(kept)], dtype=torch.int32),
        scale=batch.scale,
        max_query_len=1,
        max_context_len=len(kept),
    )


@pytest.mark.parametrize("code_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("q_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sequences", [BATCHES["mixed"], LONG], ids=len)
def test_paged_attention_reads_an_8_bit_cache(
    runner: Runner,
    sequences: list[tuple[int, int]],
    q_dtype: torch.dtype,
    code_dtype: torch.dtype,
) -> None:
    """Codes with their scales give what the keys and values they stand for give."""
    batch = paged_batch(sequences, block_size=16)
    (k, k_scale), (v, v_scale) = (encode(c, code_dtype) for c in (batch.k_cache, batch.v_cache))
    dense = batch.but(
        k_cache=k.float() * k_scale[..., None],
        v_cache=v.float() * v_scale[..., None],
    )
    coded = batch.but(q=batch.q.to(q_dtype), k_cache=k, v_cache=v, k_scale=k_scale, v_scale=v_scale)
    out = coded.run(runner)
    assert_close(out, coded.run(reference))
    assert_close(out, dense.run(reference).to(q_dtype))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_paged_attention_reads_16_bits_as_the_numbers_they_are(
    dtype: torch.dtype, head_dim: int
) -> None:
    """Widened as few queries read them or beforehand for many: the bits of an fp32 cache."""
    batch = paged_batch([(1, 37), (19, 33), (3, 20)], head_dim=head_dim, block_size=16)
    k, v = batch.k_cache.to(dtype), batch.v_cache.to(dtype)
    narrow = batch.but(k_cache=k, v_cache=v).run(NATIVE)
    wide = batch.but(k_cache=k.float(), v_cache=v.float()).run(NATIVE)
    assert torch.equal(narrow, wide)
    last = _last_query(batch.but(k_cache=k, v_cache=v), row=1, end=20)
    assert torch.equal(last.run(NATIVE)[0], narrow[19])


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_paged_attention_decodes_16_bits_for_any_group(
    dtype: torch.dtype, group: int, head_dim: int
) -> None:
    """One position, edges of blocks and tiles, odd ends: each number weighs where it belongs."""
    lengths = (1, 3, 15, 16, 17, 24, 25, 48, 301)
    sequences = [(1, length) for length in lengths]
    batch = paged_batch(
        sequences, query_heads=2 * group, kv_heads=2, head_dim=head_dim, block_size=24
    )
    k, v = batch.k_cache.to(dtype), batch.v_cache.to(dtype)
    narrow = batch.but(k_cache=k, v_cache=v).run(NATIVE)
    wide = batch.but(k_cache=k.float(), v_cache=v.float())
    assert torch.equal(narrow, wide.run(NATIVE))
    assert_close(narrow, wide.run(reference))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_paged_attention_reads_8_bits_alike_for_one_query_and_for_many(
    dtype: torch.dtype, head_dim: int
) -> None:
    """Widened as few queries read them or beforehand for many: the same bits."""
    batch = paged_batch([(1, 37), (19, 33), (3, 20)], head_dim=head_dim, block_size=16)
    (k, k_scale), (v, v_scale) = (encode(c, dtype) for c in (batch.k_cache, batch.v_cache))
    coded = batch.but(k_cache=k, v_cache=v, k_scale=k_scale, v_scale=v_scale)
    many = coded.run(NATIVE)
    assert torch.equal(_last_query(coded, row=1, end=20).run(NATIVE)[0], many[19])
    assert torch.equal(_last_query(coded, row=2, end=23).run(NATIVE)[0], many[22])


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@pytest.mark.parametrize("head_dim", [16, 32, 64])
def test_paged_attention_reads_every_fp8_number(head_dim: int) -> None:
    """Subnormal ones and both zeros among them; a query that sees one slot gets its value."""
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes[codes & 0x7F != 0x7F].view(torch.float8_e4m3fn)
    slots = -(-len(numbers) // head_dim)
    values = torch.zeros(slots * head_dim, dtype=torch.float8_e4m3fn)
    values[: len(numbers)] = numbers
    v_cache = values.view(slots, 1, 1, head_dim)
    ones = torch.ones(slots, 1, 1)
    batch = PagedBatch(
        q=torch.zeros(slots, 1, head_dim),
        k_cache=torch.zeros_like(v_cache),
        v_cache=v_cache,
        block_tables=torch.arange(slots, dtype=torch.int32)[:, None],
        query_start_lens=torch.arange(slots + 1, dtype=torch.int32),
        context_lens=torch.ones(slots, dtype=torch.int32),
        scale=1.0,
        max_query_len=1,
        max_context_len=1,
        k_scale=ones,
        v_scale=ones,
    )
    assert torch.equal(batch.run(NATIVE).flatten(), values.float())


def _last_query(batch: PagedBatch, *, row: int, end: int) -> PagedBatch:
    """One sequence's last query alone; its queries end at `end` of the packed ones."""
    return batch.but(
        q=batch.q[end - 1 : end],
        block_tables=batch.block_tables[row : row + 1],
        query_start_lens=torch.tensor([0, 1], dtype=torch.int32),
        context_lens=batch.context_lens[row : row + 1],
    )


def test_paged_attention_of_a_split_context_ignores_its_batch(runner: Runner) -> None:
    """A decode step answers alike whatever is beside it, and in Triton bit for bit."""
    together = paged_batch([(1, 290), (1, 31), (1, 900)], block_size=16)
    whole = together.run(runner)
    for row in range(3):
        length = int(together.context_lens[row])
        alone = together.but(
            q=together.q[row : row + 1],
            block_tables=together.block_tables[row : row + 1],
            query_start_lens=torch.tensor([0, 1], dtype=torch.int32),
            context_lens=together.context_lens[row : row + 1],
            max_context_len=length,
        )
        answer = alone.run(runner)[0]
        assert_close(answer, whole[row])
        assert runner.implementation != "triton" or torch.equal(answer, whole[row])


def test_paged_attention_refuses_a_cache_of_codes_without_scales() -> None:
    """8-bit codes mean nothing alone, and scales nothing beside plain values."""
    batch = paged_batch([(1, 5)])
    codes = batch.but(k_cache=batch.k_cache.to(torch.int8), v_cache=batch.v_cache.to(torch.int8))
    scales = torch.ones(batch.k_cache.shape[:3])
    for bad, says in (
        (codes, "without k_scale"),
        (batch.but(k_scale=scales), "k_scale belongs to"),
        (codes.but(k_scale=scales[:1], v_scale=scales), "k_scale is"),
    ):
        with pytest.raises(KernelError, match=says):
            paged_attention(**vars(bad))


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_paged_attention_equals_dense_attention(runner: Runner, data: st.DataObject) -> None:
    """On any ragged batch, paging gives what torch's attention gives on unpaged keys."""
    sequences = data.draw(
        st.lists(
            st.integers(1, 20).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))),
            min_size=1,
            max_size=4,
        )
    )
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (1, 4), (2, 3)]))
    batch = paged_batch(
        sequences,
        query_heads=kv_heads * group,
        kv_heads=kv_heads,
        block_size=data.draw(st.sampled_from([1, 3, 8])),
        seed=data.draw(st.integers(0, 1000)),
    )
    assert_close(batch.run(runner), _dense(batch))


def _dense(batch: PagedBatch) -> Tensor:
    """Each sequence through torch's own attention."""
    outs = []
    starts = batch.query_start_lens.tolist()
    for row, context_len in enumerate(batch.context_lens.tolist()):
        blocks = batch.block_tables[row].long().clamp(min=0)
        keys = batch.k_cache[blocks].flatten(0, 1)[:context_len].transpose(0, 1)
        values = batch.v_cache[blocks].flatten(0, 1)[:context_len].transpose(0, 1)
        q = batch.q[starts[row] : starts[row + 1]].transpose(0, 1)
        mask = torch.ones(q.shape[1], context_len).tril(context_len - q.shape[1]).bool()
        out = scaled_dot_product_attention(
            q[None], keys[None], values[None], mask, scale=batch.scale, enable_gqa=True
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)
