"""Paged attention in C++ over a cache of any dtype: nothing is gathered, all is read where it lies.

Head sizes that are no multiple of the widest vector run eager torch.
"""

from ctypes import Structure, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from kernels.native import function, require_ok, threads_for
from kernels.native_cache import LayerCache, address, half_of, is_readable, shape_of
from kernels.paged_attention import cpu


class _Attention(Structure):
    _fields_ = (
        ("q", c_void_p),
        ("token_stride", c_int64),
        ("head_stride", c_int64),
        ("out", c_void_p),
        ("block_tables", c_void_p),
        ("table_len", c_int),
        ("query_heads", c_int),
        ("scale", c_float),
        ("window", c_int),
        ("soft_cap", c_float),
        ("sinks", c_void_p),
        ("tree_mask", c_void_p),
        ("tree_width", c_int64),
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
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    tokens, query_heads, head_dim = q.shape
    if not is_readable(k_cache):
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
    sinks = None if sinks is None else sinks.contiguous()
    tree_mask = None if tree_mask is None else tree_mask.contiguous()
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    call = _Attention(
        queries.data_ptr(),
        *queries.stride()[:2],
        out.data_ptr(),
        block_tables.data_ptr(),
        block_tables.shape[1],
        query_heads,
        scale,
        window or 0,
        soft_cap or 0.0,
        None if sinks is None else sinks.data_ptr(),
        None if tree_mask is None else tree_mask.data_ptr(),
        0 if tree_mask is None else tree_mask.shape[1],
    )
    cache = LayerCache(half_of(k_cache, k_scale), half_of(v_cache, v_scale))
    shape = shape_of(k_cache)
    outcome = function("paged_attention_f32")(
        address(call),
        address(cache),
        address(shape),
        query_start_lens.data_ptr(),
        context_lens.data_ptr(),
        block_tables.shape[0],
        threads_for(tokens * query_heads * head_dim * max_context_len),
    )
    require_ok(outcome)
    return out if q.dtype == torch.float32 else out.to(q.dtype)
