"""Unpack, dequantise, then multiply, all in fp32."""

import torch
from torch import Tensor

from kernels.group_quant_linear import SYMMETRIC_ZERO
from kernels.quant_linear.reference import round_rows


def group_quant_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    values = x.float()
    if packed is not None:
        values = round_rows(values)
    result = values @ dequantise(codes, scale, zero).t()
    if bias is not None:
        result = result + bias.float()
    return result.to(x.dtype)


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """The weight [N, K] fp32 that codes of 4 or 8 bits, scales and zero points [N, G] stand for."""
    values = codes
    if codes.dtype == torch.uint8:
        values = torch.stack((codes & 15, codes >> 4), dim=-1)
    groups = values.reshape(*scale.shape, -1).float()
    zeros = SYMMETRIC_ZERO[codes.dtype] if zero is None else zero.float().unsqueeze(-1)
    return ((groups - zeros) * scale.float().unsqueeze(-1)).view(codes.shape[0], -1)
