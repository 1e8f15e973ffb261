"""Cache writes as indexed assignment."""

from torch import Tensor


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    kept = slot_mapping >= 0
    slots = slot_mapping[kept].long()
    k_cache.flatten(0, 1)[slots] = k[kept].to(k_cache.dtype)
    v_cache.flatten(0, 1)[slots] = v[kept].to(v_cache.dtype)
