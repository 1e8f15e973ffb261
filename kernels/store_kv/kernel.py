# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Cache writes in Triton: one program copies one token's key and value."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def store_kv_kernel(
    k, v, k_cache, v_cache, slot_mapping, k_stride, v_stride, ROW: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot >= 0:
        offsets = tl.arange(0, BLOCK)
        mask = offsets < ROW
        key = tl.load(k + token * k_stride + offsets, mask=mask).to(tl.float32)
        value = tl.load(v + token * v_stride + offsets, mask=mask).to(tl.float32)
        tl.store(k_cache + slot * ROW + offsets, key.to(k_cache.dtype.element_ty), mask=mask)
        tl.store(v_cache + slot * ROW + offsets, value.to(v_cache.dtype.element_ty), mask=mask)


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    tokens, kv_heads, head_dim = k.shape
    row = kv_heads * head_dim
    if tokens == 0:
        return
    k, v = _packed_heads(k), _packed_heads(v)
    store_kv_kernel[(tokens,)](
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        k.stride(0),
        v.stride(0),
        ROW=row,
        BLOCK=triton.next_power_of_2(row),
        num_warps=4 if row <= 2048 else 8,
    )


def _packed_heads(x: Tensor) -> Tensor:
    """Tokens may lie apart; the heads of one token may not."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
