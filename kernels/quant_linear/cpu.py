"""Int8 linear on CPU: which of torch's matrix products runs depends on dtype and rows.

======================  ==============  =====================================================
x                       rows            product
======================  ==============  =====================================================
fp32                    any             fp32 over `dense`, else over the weight cast to fp32
bf16                    up to 8 or 16*  torch's int8 kernel, which reads the weight as it is
bf16                    more            x.dtype over `dense`, else over the weight cast to it
fp16                    any             the same (torch's int8 kernel wants bf16)
======================  ==============  =====================================================

fp32 never rounds its activations to bf16: one product for every number of rows. (* 16 without
`dense`: casting the weight on every call costs as much as the product.
And K must be a multiple of 32: torch's int8 kernel reads past the end of other rows.)
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.quant_linear.reference import round_rows

PACKED_ROWS = 8
PACKED_ROWS_WITHOUT_DENSE = 16
PACKED_INPUTS = 32


def quant_linear(
    x: Tensor,
    weight_int8: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    dense: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    if packed is not None and x.dtype == torch.float32:
        x = round_rows(x)
    inputs = x.shape[-1]
    if x.dtype == torch.bfloat16 and inputs and inputs % PACKED_INPUTS == 0:
        rows = x.numel() // inputs
        most = PACKED_ROWS if dense is not None else PACKED_ROWS_WITHOUT_DENSE
        if 0 < rows <= most:
            return _packed(x, weight_int8, scale, bias)
    if dense is not None:
        result = linear(x, dense)
    else:
        result = linear(x, weight_int8.to(x.dtype)).mul_(scale)
    return result if bias is None else result.add_(bias)


def _packed(x: Tensor, weight_int8: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    result: Tensor = torch._weight_int8pack_mm(rows, weight_int8, scale.to(x.dtype))
    if bias is not None:
        result.add_(bias)
    return result.view(*x.shape[:-1], -1)
