"""Linear over codes in groups in C++ for a packed weight; without one the reference runs."""

import torch
from torch import Tensor

from kernels.group_quant_linear import reference
from kernels.native import function, threads_for


def group_quant_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    channels, inputs = codes.shape[0], x.shape[-1]
    rows, groups = x.numel() // inputs, scale.shape[1]
    if packed is None:
        return reference.group_quant_linear(x, codes, scale, zero, bias, packed=packed)
    dtype, x = x.dtype, x.float().contiguous()
    if bias is not None:
        bias = bias.float().contiguous()
    out = x.new_empty((*x.shape[:-1], channels))
    row_bytes = function("quant_linear_scratch_bytes")(rows, inputs)
    scratch = torch.empty(row_bytes + 4 * rows * groups, dtype=torch.uint8)
    function("group_quant_linear_f32")(
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
        packed.dtype == torch.int8,
        threads_for(rows * channels * inputs),
    )
    return out.to(dtype)
