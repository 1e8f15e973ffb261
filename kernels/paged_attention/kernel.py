# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Ragged paged attention in Triton, with an online softmax over tiles of keys.

One program takes BLOCK_Q consecutive queries of one sequence and all query heads of one key head:
BLOCK_M rows that read each key and value once. Programs find their sequence themselves (see
`kernels.ragged`), so a launch never waits for the GPU.

Short queries over long contexts are split: a program takes SEGMENT positions, and `combine_kernel`
joins the parts. A segment has one length for every context, so a sequence's result is the same in
any batch. Scales of an 8-bit cache multiply scores and weights, never the tiles.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.invariance import is_promised
from kernels.ragged import find_sequence
from kernels.tuning import tuned

SEGMENT = 256
"""Positions per program of a split context."""
SPLIT_QUERIES = 16
"""Up to so many queries a sequence, contexts are split: decode steps and verifications."""


@triton.jit
def _finish(total, weight_sum, maximum, sinks, head, mask, HAS_SINKS: tl.constexpr):
    """Weighted values over weights; a sink adds a weight that has no value."""
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=mask, other=0.0) * 1.4426950408889634
        higher = tl.maximum(maximum, sink)
        decay = tl.exp2(maximum - higher)
        total = total * decay[:, None]
        weight_sum = weight_sum * decay + tl.exp2(sink - higher)
    return total / tl.where(weight_sum == 0.0, 1.0, weight_sum)[:, None]


@triton.jit
def paged_attention_kernel(
    q, k_cache, v_cache, out, block_tables, query_start_lens, context_lens,
    k_scale, v_scale, sinks, tree_mask, partial, partial_stats,
    scale, soft_cap, window, num_tokens, num_sequences,
    q_token_stride, q_head_stride, table_stride, tree_stride,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DOT_DTYPE: tl.constexpr, SEGMENT: tl.constexpr, CODES: tl.constexpr, WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_TREE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    kv_head = tl.program_id(1)
    segment = tl.program_id(2)
    sequence = find_sequence(query_start_lens, program, num_sequences, BLOCK_Q)
    first_row = tl.load(query_start_lens + sequence)
    queries = tl.load(query_start_lens + sequence + 1) - first_row
    first_query = (program - first_row // BLOCK_Q - sequence) * BLOCK_Q
    if first_query >= queries:
        return
    context_len = tl.load(context_lens + sequence)

    # Row m of the tile is query first_query + m // GROUP, head m % GROUP of this key head.
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    d_mask = d < HEAD_DIM
    query = first_query + m // GROUP
    head = kv_head * GROUP + m % GROUP
    row_mask = (m < BLOCK_Q * GROUP) & (query < queries)
    tile_mask = row_mask[:, None] & d_mask[None, :]
    token = (first_row + query).to(tl.int64)
    q_offsets = token * q_token_stride + head * q_head_stride
    q_tile = tl.load(q + q_offsets[:, None] + d[None, :], mask=tile_mask, other=0.0).to(DOT_DTYPE)

    own = context_len - queries + query
    begin = 0
    end = context_len
    if not HAS_TREE:
        end = tl.minimum(context_len, context_len - queries + first_query + BLOCK_Q)
    if WINDOW:
        begin = tl.maximum(0, context_len - queries + first_query - window + 1)
    if SEGMENT:
        begin = tl.maximum(begin, segment * SEGMENT)
        end = tl.minimum(end, (segment + 1) * SEGMENT)
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    weight_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    maximum = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    table = block_tables + sequence.to(tl.int64) * table_stride
    # From a multiple of the tile on, so that a position's tile is the same in every call.
    for start in range(begin // BLOCK_N * BLOCK_N, end, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        # Slots past the context may hold NaN, and table entries past it -1: never load them.
        n_mask = (position >= begin) & (position < end)
        block = tl.load(table + position // BLOCK_SIZE, mask=n_mask, other=0).to(tl.int64)
        slot_head = (block * BLOCK_SIZE + position % BLOCK_SIZE) * KV_HEADS + kv_head
        kv_offsets = slot_head * HEAD_DIM
        kv_mask = n_mask[:, None] & d_mask[None, :]
        keys = tl.load(k_cache + kv_offsets[:, None] + d[None, :], mask=kv_mask, other=0.0)
        scores = tl.dot(q_tile, keys.to(DOT_DTYPE).trans(), input_precision="ieee") * scale
        if CODES:
            scores *= tl.load(k_scale + slot_head, mask=n_mask, other=0.0)[None, :]
        if SOFT_CAP:
            scores = soft_cap * (2.0 * tl.sigmoid(2.0 * scores / soft_cap) - 1.0)
        visible = (position[None, :] <= own[:, None]) & n_mask[None, :]
        if HAS_TREE:
            place = position - (context_len - queries)
            tree_offsets = token[:, None] * tree_stride + place[None, :]
            tree_load = (place >= 0)[None, :] & n_mask[None, :] & row_mask[:, None]
            among_queries = tl.load(tree_mask + tree_offsets, mask=tree_load, other=0) != 0
            visible = ((place < 0)[None, :] | among_queries) & n_mask[None, :]
        if WINDOW:
            visible = visible & (position[None, :] > own[:, None] - window)
        scores = tl.where(visible, scores * 1.4426950408889634, float("-inf"))

        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        # A row that has seen nothing yet: -inf - -inf would be NaN.
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(maximum - shift)
        values = tl.load(v_cache + kv_offsets[:, None] + d[None, :], mask=kv_mask, other=0.0)
        weight_sum = weight_sum * decay + tl.sum(weights, axis=1)
        if CODES:
            weights *= tl.load(v_scale + slot_head, mask=n_mask, other=0.0)[None, :]
        total = tl.dot(
            weights.to(DOT_DTYPE), values.to(DOT_DTYPE), total * decay[:, None],
            input_precision="ieee",
        )  # fmt: skip
        maximum = new_maximum

    row = token * (KV_HEADS * GROUP) + head
    if SEGMENT:
        part = segment.to(tl.int64) * num_tokens * (KV_HEADS * GROUP) + row
        tl.store(partial_stats + part * 2, maximum, mask=row_mask)
        tl.store(partial_stats + part * 2 + 1, weight_sum, mask=row_mask)
        # What no row of the tile has seen is not written, and `combine_kernel` never reads it.
        if begin < end:
            tl.store(partial + part[:, None] * HEAD_DIM + d[None, :], total, mask=tile_mask)
    else:
        result = _finish(total, weight_sum, maximum, sinks, head, row_mask, HAS_SINKS)
        tl.store(
            out + row[:, None] * HEAD_DIM + d[None, :],
            result.to(out.dtype.element_ty), mask=tile_mask,
        )  # fmt: skip


@triton.jit
def combine_kernel(
    partial, partial_stats, out, sinks, rows, segments,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Join the segments of one query and head, BLOCK_S of them at once."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    total = tl.zeros((1, BLOCK_D), dtype=tl.float32)
    weight_sum = tl.zeros((1,), dtype=tl.float32)
    maximum = tl.full((1,), float("-inf"), dtype=tl.float32)
    for start in range(0, segments, BLOCK_S):
        segment = start + tl.arange(0, BLOCK_S)
        part = segment.to(tl.int64) * rows + row
        s_mask = segment < segments
        part_maximum = tl.load(partial_stats + part * 2, mask=s_mask, other=float("-inf"))
        # A segment in which this row saw nothing was perhaps not written: never load it.
        seen = part_maximum > float("-inf")
        part_sum = tl.load(partial_stats + part * 2 + 1, mask=seen, other=0.0)
        part_total = tl.load(
            partial + part[:, None] * HEAD_DIM + d[None, :],
            mask=seen[:, None] & (d < HEAD_DIM)[None, :], other=0.0,
        )  # fmt: skip
        new_maximum = tl.maximum(maximum, tl.max(part_maximum, axis=0))
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        decay = tl.exp2(maximum - shift)
        weights = tl.exp2(part_maximum - shift)
        total = total * decay[:, None] + tl.sum(part_total * weights[:, None], axis=0)[None, :]
        weight_sum = weight_sum * decay + tl.sum(part_sum * weights, axis=0)
        maximum = new_maximum
    head = (row % HEADS + tl.zeros((1,), dtype=tl.int64)).to(tl.int32)
    result = _finish(total, weight_sum, maximum, sinks, head, head >= 0, HAS_SINKS)
    target = out + row * HEAD_DIM + d[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=(d < HEAD_DIM)[None, :])


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start_lens: Tensor,
    context_lens: Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_context_len: int,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    tokens, query_heads, head_dim = q.shape
    _, block_size, kv_heads, _ = k_cache.shape
    sequences = context_lens.shape[0]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    if q.stride(2) != 1:
        q = q.contiguous()
    group = query_heads // kv_heads
    if is_promised():
        # A decode step's tiles for prompts too, over a context that is never split.
        max_query_len, longest = 1, 1
    else:
        longest = max_context_len
    options = launch_options(
        q.dtype,
        k_cache.dtype,
        group=group,
        head_dim=head_dim,
        max_query_len=max_query_len,
        max_context_len=longest,
    )
    if not is_promised():
        shape = shape_class(k_cache.dtype, group, head_dim, max_query_len)
        options = tuned("paged_attention", shape, q.device, options)
    segments = triton.cdiv(max_context_len, SEGMENT) if options["SEGMENT"] else 1
    partial, stats = out, out  # Not touched where contexts are not split.
    if segments > 1:
        partial = q.new_empty((segments, tokens, query_heads, head_dim), dtype=torch.float32)
        stats = q.new_empty((segments, tokens, query_heads, 2), dtype=torch.float32)
    paged_attention_kernel[(tokens // options["BLOCK_Q"] + sequences, kv_heads, segments)](
        q,
        k_cache,
        v_cache,
        out,
        block_tables.contiguous(),
        query_start_lens,
        context_lens,
        k_cache if k_scale is None else k_scale,
        v_cache if v_scale is None else v_scale,
        out if sinks is None else sinks,
        out if tree_mask is None else tree_mask.contiguous(),
        partial,
        stats,
        scale,
        soft_cap or 0.0,
        window or 0,
        tokens,
        sequences,
        q.stride(0),
        q.stride(1),
        block_tables.shape[1],
        0 if tree_mask is None else tree_mask.shape[1],
        GROUP=group,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=window is not None,
        SOFT_CAP=soft_cap is not None,
        HAS_SINKS=sinks is not None,
        HAS_TREE=tree_mask is not None,
        **options,
    )
    if segments > 1:
        combine_kernel[(tokens * query_heads,)](
            partial,
            stats,
            out,
            out if sinks is None else sinks,
            tokens * query_heads,
            segments,
            HEADS=query_heads,
            HEAD_DIM=head_dim,
            BLOCK_D=options["BLOCK_D"],
            HAS_SINKS=sinks is not None,
            **combine_options(),
        )
    return out


def shape_class(cache_dtype: torch.dtype, group: int, head_dim: int, max_query_len: int) -> str:
    """What a measured choice of tiles is kept under."""
    kind = (
        "decode" if max_query_len == 1 else "verify" if max_query_len <= SPLIT_QUERIES else "fill"
    )
    return f"{kind}-g{group}-d{head_dim}-{str(cache_dtype).removeprefix('torch.')}"


def candidates(group: int, max_query_len: int) -> Iterator[dict[str, Any]]:
    """Options worth measuring, all of which compute the same."""
    least = max(16, triton.next_power_of_2(group))
    blocks = (least,) if max_query_len == 1 else (least, 32, 64, 128)
    for block_m, block_n, stages in product(sorted(set(blocks)), (16, 32, 64, 128), (1, 2, 3)):
        for warps in (2, 4, 8):
            if block_m >= least:
                yield {
                    "BLOCK_M": block_m, "BLOCK_Q": block_m // group, "BLOCK_N": block_n,
                    "num_warps": warps, "num_stages": stages,
                }  # fmt: skip


def launch_options(
    q_dtype: torch.dtype,
    cache_dtype: torch.dtype,
    *,
    group: int,
    head_dim: int,
    max_query_len: int,
    max_context_len: int,
) -> dict[str, Any]:
    """Tile sizes: the least rows a dot takes for decode, wider ones for prefill.

    These are the largest that spill no register on sm_80, sm_90 and sm_100.
    """
    exact = q_dtype == torch.float32 or cache_dtype == torch.float32
    short = max_query_len <= SPLIT_QUERIES
    rows = 16 if exact else min(64, max(16, triton.next_power_of_2(max_query_len * group)))
    block_m = max(rows, triton.next_power_of_2(group))
    block_d = max(16, triton.next_power_of_2(head_dim))
    codes = cache_dtype.itemsize == 1
    half = q_dtype if codes else cache_dtype
    dot_dtype = tl.float16 if half == torch.float16 else tl.bfloat16
    return {
        "BLOCK_D": block_d,
        "BLOCK_Q": block_m // group,
        "BLOCK_M": block_m,
        "BLOCK_N": 64 if block_m == 16 and block_d <= 128 and not exact else 32,
        "DOT_DTYPE": tl.float32 if exact else dot_dtype,
        "SEGMENT": SEGMENT if short and max_context_len > SEGMENT else 0,
        "CODES": codes,
        "num_warps": 8 if exact or block_d > 128 or (short and block_m > 16) else 4,
        "num_stages": 3 if block_m == 16 and block_d <= 64 and not exact else 2,
    }


def combine_options() -> dict[str, Any]:
    """Sixteen segments are the parts of four thousand positions."""
    return {"BLOCK_S": 16, "num_warps": 4}
