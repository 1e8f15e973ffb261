# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Cache writes in Triton: one program copies, or encodes, one token's key and value."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rounding import encode, scale_of


@triton.jit
def store(
    rows, cache, scales, token_offset, slot, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, CODES: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    head, d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    mask = (head < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
    offsets = head[:, None] * HEAD_DIM + d[None, :]
    values = tl.load(rows + token_offset + offsets, mask=mask, other=0.0).to(tl.float32)
    if CODES:
        scale = scale_of(tl.max(tl.abs(values), axis=1), INT8)
        tl.store(scales + slot * HEADS + head, scale, mask=head < HEADS)
        values = encode(values, tl.broadcast_to(scale[:, None], values.shape), INT8)
    target = cache + slot * (HEADS * HEAD_DIM) + offsets
    tl.store(target, values.to(cache.dtype.element_ty), mask=mask)


@triton.jit
def store_kv_kernel(
    k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale, k_stride, v_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    CODES: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot >= 0:
        store(k, k_cache, k_scale, token * k_stride, slot,
              HEADS, HEAD_DIM, BLOCK_H, BLOCK_D, CODES, INT8)  # fmt: skip
        store(v, v_cache, v_scale, token * v_stride, slot,
              HEADS, HEAD_DIM, BLOCK_H, BLOCK_D, CODES, INT8)  # fmt: skip


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    tokens, kv_heads, head_dim = k.shape
    if tokens == 0:
        return
    k, v = packed_heads(k), packed_heads(v)
    store_kv_kernel[(tokens,)](
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        k_cache if k_scale is None else k_scale,
        v_cache if v_scale is None else v_scale,
        k.stride(0),
        v.stride(0),
        **launch_options(kv_heads, head_dim, k_cache.dtype),
    )


def launch_options(kv_heads: int, head_dim: int, cache_dtype: torch.dtype) -> dict[str, Any]:
    """Heads as rows of a tile, so that one reduction finds each head's scale."""
    block_h, block_d = triton.next_power_of_2(kv_heads), triton.next_power_of_2(head_dim)
    return {
        "HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_H": block_h,
        "BLOCK_D": block_d,
        "CODES": cache_dtype.itemsize == 1,
        "INT8": cache_dtype == torch.int8,
        "num_warps": 4 if block_h * block_d <= 2048 else 8,
    }


def packed_heads(x: Tensor) -> Tensor:
    """Tokens may lie apart; the heads of one token may not."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
