"""Int4 linear in C++ for a packed weight; without one the reference runs."""

import torch
from torch import Tensor

from kernels.int4_linear import reference
from kernels.native import function, threads_for


def int4_linear(
    x: Tensor,
    weight_int4: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    channels, inputs = weight_int4.shape[0], x.shape[-1]
    rows, groups = x.numel() // inputs, scale.shape[1]
    if packed is None:
        return reference.int4_linear(x, weight_int4, scale, zero, bias, packed=packed)
    dtype, x = x.dtype, x.float().contiguous()
    if bias is not None:
        bias = bias.float().contiguous()
    out = x.new_empty((*x.shape[:-1], channels))
    codes_bytes = function("quant_linear_scratch_bytes")(rows, inputs)
    scratch = torch.empty(codes_bytes + 4 * rows * groups, dtype=torch.uint8)
    function("int4_linear_f32")(
        x.data_ptr(),
        packed.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        scratch.data_ptr(),
        rows,
        channels,
        inputs,
        inputs // groups,
        zero is not None and zero.is_floating_point(),
        threads_for(rows * channels * inputs),
    )
    return out.to(dtype)
