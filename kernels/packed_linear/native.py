"""Packed float linear in C++."""

import torch
from torch import Tensor

from kernels.native import function, threads_for
from kernels.native_cache import CACHE_KINDS


def packed_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None = None, *, channels: int
) -> Tensor:
    inputs = x.shape[-1]
    x = x.contiguous()
    rows = x.numel() // max(inputs, 1)
    if bias is not None:
        bias = bias.float().contiguous()
    out = x.new_empty((*x.shape[:-1], channels))
    scratch = torch.empty(function("packed_linear_scratch_bytes")(rows, inputs), dtype=torch.uint8)
    function("packed_linear_f32")(
        x.data_ptr(),
        packed.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        scratch.data_ptr(),
        rows,
        channels,
        inputs,
        CACHE_KINDS[packed.dtype],
        threads_for(rows * channels * inputs),
    )
    return out
