"""Cache writes as indexed assignment."""

import torch
from torch import Tensor

from kernels.checks import LARGEST_CODE


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
    kept = slot_mapping >= 0
    slots = slot_mapping[kept].long()
    for rows, cache, scales in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        values = rows[kept]
        if scales is not None:
            values, largest = _encode(values.float(), cache.dtype)
            scales.flatten(0, 1)[slots] = largest
        cache.flatten(0, 1)[slots] = values.to(cache.dtype)


def _encode(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[T, Hkv, D] fp32 -> codes, not yet cast, and their scales [T, Hkv]; zeros get scale 1."""
    scales = values.abs().amax(dim=-1) / LARGEST_CODE[dtype]
    scales = torch.where(scales > 0, scales, 1.0)
    codes = values / scales.unsqueeze(-1)
    return codes.round() if dtype == torch.int8 else codes, scales
