# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Rotation and cache writes in Triton: one program takes all heads of one token.

Under graphs a launch costs as much as all that these do for a token.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rope.kernel import rotate
from kernels.rounding import encode, scale_of
from kernels.store_kv.kernel import packed_heads, store


@triton.jit
def rope_store_kernel(
    q, k, v, q_out, cos_sin_cache, positions, k_cache, v_cache, slot_mapping, k_scale, v_scale,
    q_stride, k_stride, v_stride,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_D: tl.constexpr,
    Q_HEADS: tl.constexpr, BLOCK_Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr, BLOCK_K_HEADS: tl.constexpr,
    CODES: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    pairs = tl.arange(0, BLOCK_HALF)[None, :]
    angles = cos_sin_cache + position * (2 * HALF) + pairs
    cos = tl.load(angles, mask=pairs < HALF, other=0.0)
    sin = tl.load(angles + HALF, mask=pairs < HALF, other=0.0)
    rotate(q, q_out, q_stride, token, cos, sin, Q_HEADS, BLOCK_Q_HEADS, HALF, BLOCK_HALF)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot >= 0:
        head = tl.arange(0, BLOCK_K_HEADS)
        mask = (head < K_HEADS)[:, None] & (pairs < HALF)
        offsets = head[:, None] * (2 * HALF) + pairs
        rows = k + token * k_stride + offsets
        first = tl.load(rows, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(rows + HALF, mask=mask, other=0.0).to(tl.float32)
        # Rounded to the dtype of the keys, as they would be between two launches.
        element = k.dtype.element_ty
        one = (first * cos - second * sin).to(element).to(tl.float32)
        other = (second * cos + first * sin).to(element).to(tl.float32)
        if CODES:
            largest = tl.maximum(tl.max(tl.abs(one), axis=1), tl.max(tl.abs(other), axis=1))
            scale = scale_of(largest, INT8)
            tl.store(k_scale + slot * K_HEADS + head, scale, mask=head < K_HEADS)
            spread = tl.broadcast_to(scale[:, None], one.shape)
            one, other = encode(one, spread, INT8), encode(other, spread, INT8)
        target = k_cache + slot * (K_HEADS * 2 * HALF) + offsets
        kept = k_cache.dtype.element_ty
        tl.store(target, one.to(kept), mask=mask)
        tl.store(target + HALF, other.to(kept), mask=mask)
        store(v, v_cache, v_scale, token * v_stride, slot,
              K_HEADS, 2 * HALF, BLOCK_K_HEADS, BLOCK_D, CODES, INT8)  # fmt: skip


def rope_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    tokens, query_heads, head_dim = q.shape
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if tokens == 0:
        return q_out
    q, k, v = packed_heads(q), packed_heads(k), packed_heads(v)
    rope_store_kernel[(tokens,)](
        q,
        k,
        v,
        q_out,
        cos_sin_cache.contiguous(),
        positions,
        k_cache,
        v_cache,
        slot_mapping,
        k_cache if k_scale is None else k_scale,
        v_cache if v_scale is None else v_scale,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        **launch_options(query_heads, k.shape[1], head_dim, k_cache.dtype),
    )
    return q_out


def launch_options(
    query_heads: int, kv_heads: int, head_dim: int, cache_dtype: torch.dtype
) -> dict[str, Any]:
    """Heads as rows of a tile; more threads where the tile of values is large."""
    power = triton.next_power_of_2
    values = power(kv_heads) * power(head_dim)
    return {
        "HALF": head_dim // 2,
        "BLOCK_HALF": power(head_dim // 2),
        "BLOCK_D": power(head_dim),
        "Q_HEADS": query_heads,
        "BLOCK_Q_HEADS": power(query_heads),
        "K_HEADS": kv_heads,
        "BLOCK_K_HEADS": power(kv_heads),
        "CODES": cache_dtype.itemsize == 1,
        "INT8": cache_dtype == torch.int8,
        "num_warps": 4 if values <= 2048 else 8,
    }
