"""Round the activations as the kernel does, then multiply codes, exactly."""

import torch
from torch import Tensor

from kernels.checks import LARGEST_CODE


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    codes, row_scale = encode_rows(x.float(), weight.dtype)
    result = (codes.double() @ weight.double().t()).float() * row_scale * scale
    if bias is not None:
        result = result + bias.float()
    return result.to(x.dtype)


def encode_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[..., K] fp32 -> codes [..., K] of `dtype` and scales [..., 1] fp32."""
    largest = x.abs().amax(dim=-1, keepdim=True) if x.shape[-1] else x.new_zeros((*x.shape[:-1], 1))
    scales = largest / LARGEST_CODE[dtype]
    scales = torch.where(scales > 0, scales, 1.0)
    codes = x / scales
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scales
