"""Attention one sequence at a time: gather its keys, mask, softmax, weigh its values."""

import torch
from torch import Tensor


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
    del max_query_len, max_context_len  # Only launches need them.
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    starts = query_start_lens.tolist()
    for sequence, context_len in enumerate(context_lens.tolist()):
        rows = slice(starts[sequence], starts[sequence + 1])
        keys = _gather(k_cache, block_tables[sequence], context_len)
        values = _gather(v_cache, block_tables[sequence], context_len)
        out[rows] = _attend(q[rows].float(), keys, values, scale).to(q.dtype)
    return out


def _gather(cache: Tensor, block_table: Tensor, context_len: int) -> Tensor:
    block_size = cache.shape[1]
    num_blocks = -(-context_len // block_size)
    blocks = cache[block_table[:num_blocks].long()]
    return blocks.flatten(0, 1)[:context_len].float()


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """q [n, Hq, D], keys and values [context_len, Hkv, D], all fp32 -> [n, Hq, D]."""
    queries, context_len = q.shape[0], keys.shape[0]
    group = q.shape[1] // keys.shape[1]
    keys = keys.repeat_interleave(group, dim=1)
    values = values.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * scale
    last_seen = context_len - queries + torch.arange(queries, device=q.device)
    visible = torch.arange(context_len, device=q.device) <= last_seen.unsqueeze(1)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    weights = weights.masked_fill(~visible, 0.0)  # A query that sees nothing: zeros, not NaN.
    return torch.einsum("hqk,khd->qhd", weights, values)
