"""Cache writes by row index, without the masking calls when no token is skipped."""

from torch import Tensor

from kernels.store_kv import reference


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
    if k_scale is not None:
        return reference.store_kv(
            k, v, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale
        )
    slots = slot_mapping.tolist()
    if len(slots) == 1:
        if slots[0] >= 0:
            k_cache.flatten(0, 1)[slots[0]] = k[0]
            v_cache.flatten(0, 1)[slots[0]] = v[0]
        return None
    if slots and min(slots) < 0:
        kept = slot_mapping >= 0
        k, v, slot_mapping = k[kept], v[kept], slot_mapping[kept]
    k_cache.flatten(0, 1).index_copy_(0, slot_mapping.long(), k.to(k_cache.dtype))
    v_cache.flatten(0, 1).index_copy_(0, slot_mapping.long(), v.to(v_cache.dtype))
    return None
