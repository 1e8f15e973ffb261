"""Dequantise, then multiply, all in fp32."""

from torch import Tensor


def quant_linear(
    x: Tensor,
    weight_int8: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    dense: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    del dense, packed  # The stored weight is the truth.
    weight = weight_int8.float() * scale.unsqueeze(1)
    result = x.float() @ weight.t()
    if bias is not None:
        result = result + bias.float()
    return result.to(x.dtype)
