"""Paged attention on CPU: short queries in batches, long ones sequence by sequence.

Decode and verification rows (at most SHORT_QUERY queries each) of like length run as one batched
call: eager overhead per sequence would cost more than the arithmetic. Everything is computed in
fp32, because torch's half-precision attention of one query is many times slower on CPUs. Windows,
caps, sinks, tree masks and 8-bit caches run the reference.
"""

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.paged_attention import reference

SHORT_QUERY = 8


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
    if not is_plain(window, soft_cap, sinks, tree_mask, k_scale):
        return reference.paged_attention(
            q,
            k_cache,
            v_cache,
            block_tables,
            query_start_lens,
            context_lens,
            scale=scale,
            max_query_len=max_query_len,
            max_context_len=max_context_len,
            window=window,
            soft_cap=soft_cap,
            sinks=sinks,
            tree_mask=tree_mask,
            k_scale=k_scale,
            v_scale=v_scale,
        )
    starts, contexts = query_start_lens.tolist(), context_lens.tolist()
    if len(contexts) == 1 and 0 < starts[1] <= contexts[0]:
        return _attend_one(q, k_cache, v_cache, block_tables[0], contexts[0], scale).to(q.dtype)

    out = torch.zeros(q.shape, dtype=q.dtype)
    for (queries, _), members in _batches(starts, contexts).items():
        if len(members) == 1:
            (member,) = members
            first, end = starts[member], starts[member + 1]
            out[first:end] = _attend_one(
                q[first:end], k_cache, v_cache, block_tables[member], contexts[member], scale
            )
        else:
            ids = torch.tensor(members)
            rows = (query_start_lens[ids].unsqueeze(1) + torch.arange(queries)).view(-1)
            longest = max(contexts[member] for member in members)
            out[rows] = _attend_batch(
                q[rows], k_cache, v_cache, block_tables[ids], context_lens[ids], longest, scale
            ).to(q.dtype)
    return out


def is_plain(
    window: int | None,
    soft_cap: float | None,
    sinks: Tensor | None,
    tree_mask: Tensor | None,
    k_scale: Tensor | None,
) -> bool:
    """Whether the fast paths serve a call: they are causal, uncapped and read no 8-bit cache."""
    return (
        window is None
        and soft_cap is None
        and sinks is None
        and tree_mask is None
        and k_scale is None
    )


def _batches(starts: list[int], contexts: list[int]) -> dict[tuple[int, int], list[int]]:
    """Group sequences to run together: same number of queries, contexts within a factor of two.

    Padding then wastes less than half of a batch. A long query is a group of its own.
    """
    batches: dict[tuple[int, int], list[int]] = defaultdict(list)
    for sequence, context_len in enumerate(contexts):
        queries = starts[sequence + 1] - starts[sequence]
        if queries and context_len:  # Else there is nothing to do, or nothing to see.
            alone = queries > SHORT_QUERY or queries > context_len
            batches[queries, -sequence if alone else context_len.bit_length()].append(sequence)
    return batches


def _attend_one(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, context_len: int, scale: float
) -> Tensor:
    """One sequence: q [n, Hq, D] -> [n, Hq, D] fp32, with no padding and so no mask to fear."""
    _, block_size, kv_heads, head_dim = k_cache.shape
    queries, query_heads, _ = q.shape
    blocks = block_table[: -(-context_len // block_size)]
    shape = (1, blocks.shape[0] * block_size, kv_heads, head_dim)
    keys = k_cache.index_select(0, blocks).view(shape)[:, :context_len].transpose(1, 2).float()
    values = v_cache.index_select(0, blocks).view(shape)[:, :context_len].transpose(1, 2).float()
    q = q.float()
    if queries == 1:  # The heads of a group are as many rows over one key head.
        grouped = q.reshape(1, kv_heads, query_heads // kv_heads, head_dim)
        return scaled_dot_product_attention(grouped, keys, values, scale=scale).view(q.shape)
    whole = queries == context_len
    attended = scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        keys,
        values,
        attn_mask=None if whole else _visible(queries, torch.tensor([context_len]), context_len)[0],
        is_causal=whole,
        scale=scale,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1).contiguous()


def _attend_batch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    longest: int,
    scale: float,
) -> Tensor:
    """S sequences of n queries each: q [S * n, Hq, D] -> [S * n, Hq, D] fp32."""
    _, block_size, kv_heads, head_dim = k_cache.shape
    sequences = context_lens.shape[0]
    queries, group = q.shape[0] // sequences, q.shape[1] // kv_heads

    # Padding reads the sequence's last real slot: an unused one may hold NaN, and NaN * 0 is NaN.
    positions = torch.minimum(torch.arange(longest), context_lens.unsqueeze(1) - 1)
    slots = block_tables.gather(1, positions // block_size) * block_size + positions % block_size
    shape = (sequences, longest, kv_heads, head_dim)
    keys = k_cache.flatten(0, 1).index_select(0, slots.view(-1)).view(shape).transpose(1, 2)
    values = v_cache.flatten(0, 1).index_select(0, slots.view(-1)).view(shape).transpose(1, 2)

    split = q.float().reshape(sequences, queries, kv_heads, group, head_dim)
    grouped = split.permute(0, 2, 3, 1, 4).reshape(sequences, kv_heads, group * queries, head_dim)
    visible = _visible(queries, context_lens, longest)
    mask = visible.unsqueeze(1).expand(-1, group, -1, -1).reshape(sequences, 1, -1, longest)
    attended = scaled_dot_product_attention(
        grouped, keys.float(), values.float(), attn_mask=mask, scale=scale
    )
    split = attended.view(sequences, kv_heads, group, queries, head_dim)
    return split.permute(0, 3, 1, 2, 4).reshape(q.shape)


def _visible(queries: int, context_lens: Tensor, longest: int) -> Tensor:
    """[S, n, longest] bool: may query i of a sequence see position p?"""
    last_seen = context_lens.unsqueeze(1) - queries + torch.arange(queries)
    return torch.arange(longest) <= last_seen.unsqueeze(2)
