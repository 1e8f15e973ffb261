"""paged_attention: every implementation against the reference, and the reference against torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import PagedBatch, Runner, paged_batch, reference
from tolerances import assert_close
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
    strided = PagedBatch(**{**vars(batch), "q": fused[:, :4]})
    assert_close(strided.run(runner), batch.run(reference))


def test_paged_attention_takes_bounds_larger_than_the_batch(runner: Runner) -> None:
    """The two maxima only size a launch: larger ones change nothing."""
    batch = paged_batch([(1, 9), (4, 6)])
    loose = PagedBatch(**{**vars(batch), "max_query_len": 9, "max_context_len": 12})
    assert_close(loose.run(runner), batch.run(reference))


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
