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
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    del max_query_len, max_context_len  # Only launches need them.
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    starts = query_start_lens.tolist()
    for sequence, context_len in enumerate(context_lens.tolist()):
        rows = slice(starts[sequence], starts[sequence + 1])
        keys = _gather(k_cache, k_scale, block_tables[sequence], context_len)
        values = _gather(v_cache, v_scale, block_tables[sequence], context_len)
        tree = None if tree_mask is None else tree_mask[rows]
        visible = _visible(rows.stop - rows.start, context_len, window, tree, q.device)
        out[rows] = _attend(
            q[rows].float(), keys, values, visible, scale=scale, soft_cap=soft_cap, sinks=sinks
        ).to(q.dtype)
    return out


def _gather(cache: Tensor, scales: Tensor | None, block_table: Tensor, context_len: int) -> Tensor:
    """[context_len, Hkv, D] fp32 of one sequence."""
    blocks = block_table[: -(-context_len // cache.shape[1])].long()
    rows = cache[blocks].flatten(0, 1)[:context_len].float()
    if scales is not None:
        rows = rows * scales[blocks].flatten(0, 1)[:context_len].unsqueeze(-1)
    return rows


def _visible(
    queries: int, context_len: int, window: int | None, tree: Tensor | None, device: torch.device
) -> Tensor:
    """[n, context_len] bool: which positions each query sees."""
    positions = torch.arange(context_len, device=device)
    own = context_len - queries + torch.arange(queries, device=device).unsqueeze(1)
    visible = positions <= own
    if tree is not None:
        # Queries that lie before the context's start (padding) have no position to be seen at.
        place = positions - (context_len - queries)
        among_queries = tree[:, place.clamp(min=0)] if queries else visible
        visible = torch.where(place >= 0, among_queries, place < 0)
    if window is not None:
        visible = visible & (positions > own - window)
    return visible


def _attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    *,
    scale: float,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """q [n, Hq, D], keys and values [context_len, Hkv, D], all fp32 -> [n, Hq, D]."""
    queries, context_len = visible.shape
    group = q.shape[1] // keys.shape[1]
    keys = keys.repeat_interleave(group, dim=1)
    values = values.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        sink = sinks.view(-1, 1, 1).expand(-1, queries, 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = scores.softmax(dim=-1)[..., :context_len]
    weights = weights.masked_fill(~visible, 0.0)  # A query that sees nothing: zeros, not NaN.
    return torch.einsum("hqk,khd->qhd", weights, values)
