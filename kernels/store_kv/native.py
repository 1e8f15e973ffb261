"""Cache writes in C++ where tokens and cache are fp32; other dtypes run eager torch."""

import torch
from torch import Tensor

from kernels.native import function, require_ok
from kernels.store_kv import cpu


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
    if not k.dtype == k_cache.dtype == torch.float32:
        return cpu.store_kv(k, v, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale)
    k, v, slots = _packed_heads(k), _packed_heads(v), slot_mapping.long().contiguous()
    blocks, block_size, kv_heads, head_dim = k_cache.shape
    outcome = function("store_kv_f32")(
        k.data_ptr(),
        v.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        slots.data_ptr(),
        blocks * block_size,
        slots.shape[0],
        kv_heads * head_dim,
        k.stride(0),
        v.stride(0),
    )
    return require_ok(outcome)


def _packed_heads(x: Tensor) -> Tensor:
    """Tokens may lie apart; the heads of one token may not."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
