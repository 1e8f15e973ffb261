# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Rotary embedding in Triton: one program rotates all heads of one token."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rotate(
    x, out, stride, token, cos, sin, HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    pairs = tl.arange(0, BLOCK_HALF)[None, :]
    mask = (heads < HEADS) & (pairs < HALF)
    offsets = heads * (2 * HALF) + pairs
    first = tl.load(x + token * stride + offsets, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + token * stride + HALF + offsets, mask=mask, other=0.0).to(tl.float32)
    start = out + token * (HEADS * 2 * HALF)
    element = out.dtype.element_ty
    tl.store(start + offsets, (first * cos - second * sin).to(element), mask=mask)
    tl.store(start + HALF + offsets, (second * cos + first * sin).to(element), mask=mask)


@triton.jit
def rope_kernel(
    q, k, q_out, k_out, cos_sin_cache, positions, q_stride, k_stride,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
    Q_HEADS: tl.constexpr, BLOCK_Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr, BLOCK_K_HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    pairs = tl.arange(0, BLOCK_HALF)[None, :]
    angles = cos_sin_cache + position * (2 * HALF) + pairs
    cos = tl.load(angles, mask=pairs < HALF, other=0.0)
    sin = tl.load(angles + HALF, mask=pairs < HALF, other=0.0)
    rotate(q, q_out, q_stride, token, cos, sin, Q_HEADS, BLOCK_Q_HEADS, HALF, BLOCK_HALF)
    rotate(k, k_out, k_stride, token, cos, sin, K_HEADS, BLOCK_K_HEADS, HALF, BLOCK_HALF)


def rope(q: Tensor, k: Tensor, cos_sin_cache: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    tokens, query_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if tokens == 0:
        return q_out, k_out
    q, k = packed_heads(q), packed_heads(k)
    rope_kernel[(tokens,)](
        q,
        k,
        q_out,
        k_out,
        cos_sin_cache.contiguous(),
        positions,
        q.stride(0),
        k.stride(0),
        HALF=head_dim // 2,
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        Q_HEADS=query_heads,
        BLOCK_Q_HEADS=triton.next_power_of_2(query_heads),
        K_HEADS=kv_heads,
        BLOCK_K_HEADS=triton.next_power_of_2(kv_heads),
        num_warps=4,
    )
    return q_out, k_out


def packed_heads(x: Tensor) -> Tensor:
    """Tokens may lie apart; the heads of one token may not."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
