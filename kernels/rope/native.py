"""Rotary embedding in C++ for fp32; other dtypes run eager torch."""

import torch
from torch import Tensor

from kernels.native import function, require_ok
from kernels.rope import cpu


def rope(q: Tensor, k: Tensor, cos_sin_cache: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    if q.dtype != torch.float32:
        return cpu.rope(q, k, cos_sin_cache, positions)
    tokens, query_heads, head_dim = q.shape
    q_out = torch.empty_like(q, memory_format=torch.contiguous_format)
    k_out = torch.empty_like(k, memory_format=torch.contiguous_format)
    if q.stride(2) != 1 or k.stride(2) != 1:
        q, k = q.contiguous(), k.contiguous()
    cos_sin_cache, positions = cos_sin_cache.contiguous(), positions.long().contiguous()
    outcome = function("rope_f32")(
        q.data_ptr(),
        k.data_ptr(),
        q_out.data_ptr(),
        k_out.data_ptr(),
        cos_sin_cache.data_ptr(),
        positions.data_ptr(),
        cos_sin_cache.shape[0],
        tokens,
        query_heads,
        k.shape[1],
        head_dim,
        *q.stride()[:2],
        *k.stride()[:2],
    )
    require_ok(outcome)
    return q_out, k_out
