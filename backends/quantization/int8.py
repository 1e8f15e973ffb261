"""Int8 weights, symmetric, one scale per output channel: packing and numbers only."""

from typing import Final

import torch
from torch import Tensor

LARGEST: Final = 127
"""-128 stays unused, so that the codes are symmetric and a product of two fits 15 bits."""


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of a weight to 8 bits.

    Args:
        weight: [out, in], any float dtype.

    Returns:
        codes [out, in] int8 and scales [out] fp32, with weight ≈ codes * scales[:, None]; a row of
        zeros gets scale 1.
    """
    exact = weight.float()
    scales = exact.abs().amax(dim=1) / LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (exact / scales[:, None]).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return codes, scales


def dequantize_int8(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight that the codes and scales stand for, [out, in] in `dtype`."""
    return (codes.float() * scales.float().reshape(-1, 1)).to(dtype)
