"""Cache writes in C++ where tokens are fp32, into a cache of any dtype; the rest is eager torch."""

import torch
from torch import Tensor

from kernels.native import function, require_ok
from kernels.native_cache import address, half_of, is_writable, shape_of
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
    if k.dtype != torch.float32 or not is_writable(k_cache):
        return cpu.store_kv(k, v, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale)
    k, v, slots = _packed_heads(k), _packed_heads(v), slot_mapping.long().contiguous()
    keys, values, shape = half_of(k_cache, k_scale), half_of(v_cache, v_scale), shape_of(k_cache)
    outcome = function("store_kv_f32")(
        k.data_ptr(),
        v.data_ptr(),
        address(keys),
        address(values),
        address(shape),
        slots.data_ptr(),
        slots.shape[0],
        k.stride(0),
        v.stride(0),
    )
    return require_ok(outcome)


def _packed_heads(x: Tensor) -> Tensor:
    """Tokens may lie apart; the heads of one token may not."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
