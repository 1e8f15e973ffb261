"""The two ops in C++; a whole decoder in one call fuses them itself."""

from torch import Tensor

from kernels.rope.native import rope
from kernels.store_kv.native import store_kv


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
    q, k = rope(q, k, cos_sin_cache, positions)
    store_kv(k, v, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale)
    return q
