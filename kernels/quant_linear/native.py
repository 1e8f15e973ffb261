"""Int8 linear in C++ for fp32 activations; other dtypes run eager torch.

A row's result does not depend on the other rows. With `packed` the sums are exact integers: any
number of rows, any instruction set and any number of threads give the same bits. Without, up to
`MOST_ROWS` rows run here: torch's blocked products are faster for more.
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
    packed: Tensor | None = None,
) -> Tensor:
    channels, inputs = weight_int8.shape
    rows = x.numel() // max(inputs, 1)
    if x.dtype != torch.float32 or not rows or (packed is None and rows > MOST_ROWS):
        return cpu.quant_linear(x, weight_int8, scale, bias, dense=dense, packed=packed)
    x, scale = x.contiguous(), scale.contiguous()
    if bias is not None:
        bias = bias.float().contiguous()
    out = x.new_empty((*x.shape[:-1], channels))
    pointers = (scale.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr())
    sizes = (rows, channels, inputs, threads_for(rows * channels * inputs))
    if packed is None:
        weight = weight_int8.contiguous()
        function("quant_linear_f32")(x.data_ptr(), weight.data_ptr(), *pointers, *sizes)
    else:
        bytes_needed = function("quant_linear_scratch_bytes")(rows, inputs)
        scratch = torch.empty(bytes_needed, dtype=torch.uint8)
        function("quant_linear_packed_f32")(
            x.data_ptr(), packed.data_ptr(), *pointers, scratch.data_ptr(), *sizes
        )
    return out
