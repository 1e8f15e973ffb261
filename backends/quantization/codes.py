"""A linear weight as codes: what schemes turn their tensors into, and layers are made of."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.group_quant_linear import SYMMETRIC_ZERO
from kernels.group_quant_linear.reference import dequantise as dequantise_groups


class Int8Codes(NamedTuple):
    """weight = codes * scales[:, None]."""

    codes: Tensor
    """[N, K] int8."""
    scales: Tensor
    """[N] fp32."""
    rounds_activations: bool = False
    """Whether the scheme means activations to be rounded to 8 bits too (W8A8)."""


class GroupCodes(NamedTuple):
    """weight = (code - zero) * scale of its group of inputs; see `kernels.group_quant_linear`."""

    codes: Tensor
    """[N, K / 2] uint8, even inputs in the low four bits; or [N, K] int8."""
    scales: Tensor
    """[N, G] fp32."""
    zeros: Tensor | None
    """[N, G] uint8 or fp32; None: 8 everywhere for 4 bits, 0 for 8."""

    def on(self, device: torch.device) -> "GroupCodes":
        """The same codes on a device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return GroupCodes(self.codes.to(device), self.scales.to(device), zeros)


class Fp8Codes(NamedTuple):
    """weight = codes * scales[:, None]."""

    codes: Tensor
    """[N, K] float8_e4m3fn."""
    scales: Tensor
    """[N] fp32."""


Codes = Int8Codes | GroupCodes | Fp8Codes


def stack(parts: Sequence[Codes]) -> Codes:
    """Put the output channels of layers of one kind, which share an input, below each other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    codes = torch.cat([part.codes for part in parts])
    scales = torch.cat([part.scales for part in parts])
    if not isinstance(first, GroupCodes):
        return first._replace(codes=codes, scales=scales)
    zeros = [part.zeros for part in parts if isinstance(part, GroupCodes)]
    if not any(zero is not None for zero in zeros):
        return GroupCodes(codes, scales, None)
    middle = SYMMETRIC_ZERO[codes.dtype]
    filled = [
        torch.full_like(part.scales, middle, dtype=torch.uint8) if zero is None else zero
        for part, zero in zip(parts, zeros, strict=True)
    ]
    return GroupCodes(codes, scales, torch.cat(filled))


def reordered(weight: Codes, order: Tensor) -> Codes:
    """The same output channels in another order [N] int64."""
    codes = weight.codes.view(torch.uint8)[order].view(weight.codes.dtype)
    if isinstance(weight, GroupCodes):
        zeros = None if weight.zeros is None else weight.zeros[order]
        return GroupCodes(codes, weight.scales[order], zeros)
    return weight._replace(codes=codes, scales=weight.scales[order])


def dequantise(weight: Codes) -> Tensor:
    """Return the weight [N, K] fp32 that codes stand for."""
    if isinstance(weight, GroupCodes):
        return dequantise_groups(weight.codes, weight.scales, weight.zeros)
    return weight.codes.float() * weight.scales[:, None]


def moved(weight: Codes, device: torch.device) -> Codes:
    """The same codes on a device."""
    if isinstance(weight, GroupCodes):
        return weight.on(device)
    return weight._replace(codes=weight.codes.to(device), scales=weight.scales.to(device))
