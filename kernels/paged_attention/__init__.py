"""Attention over keys and values that lie in cache blocks."""

import torch
from torch import Tensor

from kernels.checks import (
    CODE_DTYPES,
    require_dtype,
    require_float,
    require_one_device,
    require_scales,
)
from kernels.dispatch import choose
from kernels.errors import ShapeError


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
    """Attend each query token to the cached keys of its own sequence, causally.

    One ragged batch holds decode steps, prefill chunks and speculative verification alike: query i
    of a sequence with n queries sees the positions up to and with context_len - n + i, its own. A
    query that sees nothing (a padding row) gets zeros.

    Args:
        q: [T, Hq, D] bf16 | fp16 | fp32. Queries of all sequences, packed; rows may be strided.
        k_cache, v_cache: [N, B, Hkv, D] bf16 | fp16 | fp32 | int8 | fp8 e4m3, contiguous. N blocks
            of B slots; read only. Hq is a multiple of Hkv: query head h reads key head
            h * Hkv // Hq.
        block_tables: [S, M] int32. Block ids per sequence; -1 pads.
        query_start_lens: [S + 1] int32. Row of each sequence's first query, then T.
        context_lens: [S] int32. Tokens in the cache, the queries' own (already stored) included.
        scale: multiplies the scores, usually D ** -0.5.
        max_query_len: at least the most queries of any sequence; sizes the launch.
        max_context_len: at least the longest context; sizes the launch.
        window: a query sees the last `window` positions only, its own among them.
        soft_cap: scores become soft_cap * tanh(score / soft_cap).
        sinks: [Hq] fp32. One more score per head, which takes weight and brings no value.
        tree_mask: [T, W] bool, W at least max_query_len. Query t sees its sequence's query j where
            [t, j] is set, instead of all up to itself; the positions before stay visible.
        k_scale, v_scale: [N, B, Hkv] fp32, contiguous; given exactly where the cache is 8-bit:
            a key is its codes times its slot's and head's scale.

    Returns:
        [T, Hq, D], q.dtype, contiguous, accumulated in fp32.

    Raises:
        ShapeError: sizes disagree, or the block tables are too short for `max_context_len`.
        DTypeError: a tensor has another dtype than given above, or scales stand without codes.

    Source: Kwon et al. 2023, "Efficient Memory Management for LLM Serving with PagedAttention", §4;
    sinks: Xiao et al. 2024, "Efficient Streaming Language Models with Attention Sinks".
    """
    require_float(q, "q")
    if k_cache.dtype not in CODE_DTYPES:
        require_float(k_cache, "k_cache")
    if v_cache.dtype != k_cache.dtype:
        require_dtype(v_cache, "v_cache", k_cache.dtype)
    require_scales(k_cache, k_scale, "k_scale")
    require_scales(v_cache, v_scale, "v_scale")
    int32 = torch.int32
    if not (block_tables.dtype == query_start_lens.dtype == context_lens.dtype == int32):
        require_dtype(block_tables, "block_tables", int32)
        require_dtype(query_start_lens, "query_start_lens", int32)
        require_dtype(context_lens, "context_lens", int32)
    require_one_device(
        q, k_cache, v_cache, block_tables, query_start_lens, context_lens, sinks, tree_mask, k_scale
    )
    _check_heads(q, k_cache, v_cache)
    _check_batch(block_tables, query_start_lens, context_lens, k_cache.shape[1], max_context_len)
    if not (window is None and soft_cap is None and sinks is None and tree_mask is None):
        _check_variant(q, window, soft_cap, sinks, tree_mask, max_query_len)
    result: Tensor = choose("paged_attention", q.device.type)(
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
    return result


def _check_heads(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    if q.dim() != 3:
        raise ShapeError(f"q is {list(q.shape)}; need [T, Hq, D]")
    if k_cache.dim() != 4 or v_cache.shape != k_cache.shape:
        raise ShapeError(
            f"k_cache is {list(k_cache.shape)} and v_cache is {list(v_cache.shape)}; "
            "need [N, B, Hkv, D]"
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ShapeError("k_cache and v_cache must be contiguous")
    _, query_heads, head_dim = q.shape
    _, _, kv_heads, cache_dim = k_cache.shape
    if head_dim != cache_dim:
        raise ShapeError(f"head size is {head_dim} in q but {cache_dim} in the cache")
    if kv_heads == 0 or query_heads % kv_heads:
        raise ShapeError(f"{query_heads} query heads do not divide over {kv_heads} key heads")


def _check_batch(
    block_tables: Tensor,
    query_start_lens: Tensor,
    context_lens: Tensor,
    block_size: int,
    max_context_len: int,
) -> None:
    if block_tables.dim() != 2:
        raise ShapeError(f"block_tables is {list(block_tables.shape)}; need [S, M]")
    sequences, table_len = block_tables.shape
    if query_start_lens.dim() != 1 or query_start_lens.shape[0] != sequences + 1:
        raise ShapeError(
            f"query_start_lens is {list(query_start_lens.shape)}; need [{sequences + 1}]"
        )
    if context_lens.dim() != 1 or context_lens.shape[0] != sequences:
        raise ShapeError(f"context_lens is {list(context_lens.shape)}; need [{sequences}]")
    if sequences and table_len * block_size < max_context_len:
        raise ShapeError(
            f"block tables of {table_len} blocks of {block_size} slots are too short for "
            f"max_context_len {max_context_len}"
        )


def _check_variant(
    q: Tensor,
    window: int | None,
    soft_cap: float | None,
    sinks: Tensor | None,
    tree_mask: Tensor | None,
    max_query_len: int,
) -> None:
    tokens, query_heads, _ = q.shape
    if window is not None and window < 1:
        raise ShapeError(f"window is {window}; a query sees at least itself")
    if soft_cap is not None and not soft_cap > 0:
        raise ShapeError(f"soft_cap is {soft_cap}; need a positive number")
    if sinks is not None:
        require_dtype(sinks, "sinks", torch.float32)
        if sinks.shape != (query_heads,):
            raise ShapeError(f"sinks is {list(sinks.shape)}; need [{query_heads}]")
    if tree_mask is not None:
        require_dtype(tree_mask, "tree_mask", torch.bool)
        if tree_mask.dim() != 2 or tree_mask.shape[0] != tokens:
            raise ShapeError(f"tree_mask is {list(tree_mask.shape)}; need [{tokens}, W]")
        if tree_mask.shape[1] < max_query_len:
            raise ShapeError(
                f"tree_mask is {tree_mask.shape[1]} wide; max_query_len is {max_query_len}"
            )
