"""Int8 linear in C++ for fp32 activations of a decode or verification step.

Its result for a row does not depend on the other rows. More rows (a prefill) and other dtypes run
eager torch, whose blocked products are faster there.
"""

import torch
from torch import Tensor

from kernels.native import function, threads_for
from kernels.quant_linear import cpu

MOST_ROWS = 128


def quant_linear(
    x: Tensor,
    weight_int8: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    dense: Tensor | None = None,
) -> Tensor:
    rows = x.numel() // max(x.shape[-1], 1)
    if x.dtype != torch.float32 or rows > MOST_ROWS or not rows:
        return cpu.quant_linear(x, weight_int8, scale, bias, dense=dense, packed=packed)
    x, scale = x.contiguous(), scale.contiguous()
    weight = weight_int8.contiguous() if packed is None else packed
    if bias is not None:
        bias = bias.float().contiguous()
    channels, inputs = weight_int8.shape
    out = torch.empty(*x.shape[:-1], channels)
    rows = out.numel() // max(channels, 1)
    name = "quant_linear_f32" if packed is None else "quant_linear_packed_f32"
    function(name)(
        x.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        rows,
        channels,
        inputs,
        threads_for(rows * channels * inputs),
    )
    return out
