"""Symmetric int8 weights, one scale for each output channel."""

import torch
from torch import Tensor

SCALE_SUFFIX = "_scale"


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to int8.

    Args:
        weight: [out, in], any float type.

    Returns:
        int8 [out, in] in -127..127, and its bf16 scales [out, 1]; a row of zeros has scale 1.
    """
    weight = weight.float()
    peak = weight.abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak / 127, torch.ones_like(peak)).bfloat16()
    return (weight / scale.float()).round().clamp(-127, 127).to(torch.int8), scale


def dequantize_int8(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the fp32 matrix [out, in] that int8 weights and scales [out, 1] stand for."""
    return weight.float() * scale.float()
