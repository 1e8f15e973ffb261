"""Paged attention in C++ over an fp32 cache; other caches and variants run eager torch.

Nothing is gathered: keys and values are read where they lie.
"""

import torch
from torch import Tensor

from kernels.native import function, require_ok, threads_for
from kernels.paged_attention import cpu

HEAD_DIM_MULTIPLE = 16  # The widest vector.


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
    sequences, table_len = block_tables.shape
    blocks, block_size, kv_heads, _ = k_cache.shape
    plain = cpu.is_plain(window, soft_cap, sinks, tree_mask, k_scale)
    if not plain or k_cache.dtype != torch.float32 or head_dim % HEAD_DIM_MULTIPLE:
        return cpu.paged_attention(
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
    queries = q.float()
    if queries.stride(2) != 1:
        queries = queries.contiguous()
    block_tables = block_tables.contiguous()
    query_start_lens, context_lens = query_start_lens.contiguous(), context_lens.contiguous()
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    outcome = function("paged_attention_f32")(
        queries.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        out.data_ptr(),
        block_tables.data_ptr(),
        query_start_lens.data_ptr(),
        context_lens.data_ptr(),
        blocks,
        sequences,
        table_len,
        *queries.stride()[:2],
        query_heads,
        kv_heads,
        head_dim,
        block_size,
        scale,
        threads_for(tokens * query_heads * head_dim * max_context_len),
    )
    require_ok(outcome)
    return out if q.dtype == torch.float32 else out.to(q.dtype)
