"""Unpack, dequantise, then multiply, all in fp32."""

import torch
from torch import Tensor

from kernels.quant_linear.reference import round_rows


def int4_linear(
    x: Tensor,
    weight_int4: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    values = x.float()
    if packed is not None:
        values = round_rows(values)
    result = values @ dequantise(weight_int4, scale, zero).t()
    if bias is not None:
        result = result + bias.float()
    return result.to(x.dtype)


def dequantise(weight_int4: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """The weight [N, K] fp32 that codes [N, K / 2], scales and zero points [N, G] stand for."""
    codes = torch.stack((weight_int4 & 15, weight_int4 >> 4), dim=-1)
    groups = codes.view(*scale.shape, -1).float()
    zeros = 8.0 if zero is None else zero.float().unsqueeze(-1)
    return ((groups - zeros) * scale.float().unsqueeze(-1)).view(weight_int4.shape[0], -1)
