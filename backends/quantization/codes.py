"""A linear weight as codes: what schemes turn their tensors into, and layers are made of."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Int8Codes(NamedTuple):
    """weight = codes * scales[:, None]."""

    codes: Tensor
    """[N, K] int8."""
    scales: Tensor
    """[N] fp32."""
    rounds_activations: bool = False
    """Whether the scheme means activations to be rounded to 8 bits too (W8A8)."""


class Int4Codes(NamedTuple):
    """weight = (code - zero) * scale of its group of K / G inputs; see `kernels.int4_linear`."""

    codes: Tensor
    """[N, K / 2] uint8, even inputs in the low four bits."""
    scales: Tensor
    """[N, G] fp32."""
    zeros: Tensor | None
    """[N, G] uint8 or fp32; None: 8 everywhere."""


class Fp8Codes(NamedTuple):
    """weight = codes * scales[:, None]."""

    codes: Tensor
    """[N, K] float8_e4m3fn."""
    scales: Tensor
    """[N] fp32."""


Codes = Int8Codes | Int4Codes | Fp8Codes


def stack(parts: Sequence[Codes]) -> Codes:
    """Put the output channels of layers of one kind, which share an input, below each other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    codes = torch.cat([part.codes for part in parts])
    scales = torch.cat([part.scales for part in parts])
    if not isinstance(first, Int4Codes):
        return first._replace(codes=codes, scales=scales)
    zeros = [part.zeros for part in parts if isinstance(part, Int4Codes)]
    if not any(zero is not None for zero in zeros):
        return Int4Codes(codes, scales, None)
    eights = (torch.full_like(part.scales, 8, dtype=torch.uint8) for part in parts)
    filled = [eight if zero is None else zero for zero, eight in zip(zeros, eights, strict=True)]
    return Int4Codes(codes, scales, torch.cat(filled))


def dequantise(weight: Codes) -> Tensor:
    """Return the weight [N, K] fp32 that codes stand for."""
    if isinstance(weight, Int4Codes):
        from kernels.int4_linear.reference import dequantise as dequantise_int4

        return dequantise_int4(weight.codes, weight.scales, weight.zeros)
    return weight.codes.float() * weight.scales[:, None]


def moved(weight: Codes, device: torch.device) -> Codes:
    """The same codes on a device."""
    codes, scales = weight.codes.to(device), weight.scales.to(device)
    if isinstance(weight, Int4Codes):
        zeros = None if weight.zeros is None else weight.zeros.to(device)
        return Int4Codes(codes, scales, zeros)
    return weight._replace(codes=codes, scales=scales)
