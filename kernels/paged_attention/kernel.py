# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Ragged paged attention in Triton, with an online softmax over tiles of keys.

One program takes BLOCK_Q consecutive queries of one sequence and all query heads of one key head:
BLOCK_M rows that read each key and value once. Grid rows are handed out without knowing the lengths
on the host: sequence s owns the rows from query_start_lens[s] // BLOCK_Q + s on, enough for any
split, and a program finds its sequence by bisection. So a launch never waits for the GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@triton.jit
def _find_sequence(query_start_lens, program, num_sequences, BLOCK_Q: tl.constexpr):
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start_lens + middle) // BLOCK_Q + middle <= program:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def paged_attention_kernel(
    q, k_cache, v_cache, out, block_tables, query_start_lens, context_lens,
    scale_log2, num_sequences, q_token_stride, q_head_stride, table_stride,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = _find_sequence(query_start_lens, program, num_sequences, BLOCK_Q)
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

    last_seen = context_len - queries + query
    end = tl.minimum(context_len, context_len - queries + first_query + BLOCK_Q)
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    weight_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    maximum = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    table = block_tables + sequence.to(tl.int64) * table_stride
    for start in range(0, end, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        # Slots past the context may hold NaN, and table entries past it -1: never load them.
        n_mask = position < end
        block = tl.load(table + position // BLOCK_SIZE, mask=n_mask, other=0).to(tl.int64)
        slot = block * BLOCK_SIZE + position % BLOCK_SIZE
        kv_offsets = (slot * KV_HEADS + kv_head) * HEAD_DIM
        kv_mask = n_mask[:, None] & d_mask[None, :]
        keys = tl.load(k_cache + kv_offsets[:, None] + d[None, :], mask=kv_mask, other=0.0)
        scores = tl.dot(q_tile, keys.to(DOT_DTYPE).trans(), input_precision="ieee") * scale_log2
        scores = tl.where(position[None, :] <= last_seen[:, None], scores, float("-inf"))

        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        # A row that has seen nothing yet: -inf - -inf would be NaN.
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(maximum - shift)
        values = tl.load(v_cache + kv_offsets[:, None] + d[None, :], mask=kv_mask, other=0.0)
        weight_sum = weight_sum * decay + tl.sum(weights, axis=1)
        total = tl.dot(
            weights.to(DOT_DTYPE), values.to(DOT_DTYPE), total * decay[:, None],
            input_precision="ieee",
        )  # fmt: skip
        maximum = new_maximum

    result = total / tl.where(weight_sum == 0.0, 1.0, weight_sum)[:, None]
    out_offsets = (token * (KV_HEADS * GROUP) + head) * HEAD_DIM
    tl.store(
        out + out_offsets[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=tile_mask
    )


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
) -> Tensor:
    del max_context_len  # Every program reads its own context length.
    tokens, query_heads, head_dim = q.shape
    _, block_size, kv_heads, _ = k_cache.shape
    sequences = context_lens.shape[0]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    if q.stride(2) != 1:
        q = q.contiguous()
    group = query_heads // kv_heads
    options = launch_options(
        q.dtype, k_cache.dtype, group=group, head_dim=head_dim, max_query_len=max_query_len
    )
    paged_attention_kernel[(tokens // options["BLOCK_Q"] + sequences, kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        block_tables.contiguous(),
        query_start_lens,
        context_lens,
        scale * LOG2_E,
        sequences,
        q.stride(0),
        q.stride(1),
        block_tables.shape[1],
        GROUP=group,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        **options,
    )
    return out


def launch_options(
    q_dtype: torch.dtype,
    cache_dtype: torch.dtype,
    *,
    group: int,
    head_dim: int,
    max_query_len: int,
) -> dict[str, Any]:
    """Tile sizes: the least rows a dot takes for decode, wider ones for prefill.

    These are the largest that spill no register on sm_80 and sm_90.
    """
    exact = torch.float32 in (q_dtype, cache_dtype)
    rows = 16 if max_query_len * group <= 16 or exact else 64
    block_m = max(rows, triton.next_power_of_2(group))
    block_d = max(16, triton.next_power_of_2(head_dim))
    dot_dtype = tl.float16 if cache_dtype == torch.float16 else tl.bfloat16
    return {
        "BLOCK_D": block_d,
        "BLOCK_Q": block_m // group,
        "BLOCK_M": block_m,
        "BLOCK_N": 64 if block_m == 16 and block_d <= 128 and not exact else 32,
        "DOT_DTYPE": tl.float32 if exact else dot_dtype,
        "num_warps": 8 if exact or block_d > 128 else 4,
        "num_stages": 2,
    }
