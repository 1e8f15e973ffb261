"""RMS norm as the formula reads."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    x32 = x.float()
    mean_square = x32.square().mean(dim=-1, keepdim=True)
    return (x32 * torch.rsqrt(mean_square + eps) * weight.float()).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps=eps), new_residual
