"""RMS norm in C++ for fp32; other dtypes run eager torch."""

import torch
from torch import Tensor

from kernels.native import function
from kernels.rms_norm import cpu


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    if not x.dtype == weight.dtype == torch.float32:
        return cpu.rms_norm(x, weight, eps=eps)
    x = x.contiguous()
    out = torch.empty_like(x)
    _run(x, None, weight, out, None, eps)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    if not x.dtype == weight.dtype == torch.float32:
        return cpu.add_rms_norm(x, residual, weight, eps=eps)
    x = x.contiguous()
    out, new_residual = torch.empty_like(x), torch.empty_like(x)
    _run(x, residual.contiguous(), weight, out, new_residual, eps)
    return out, new_residual


def _run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    out: Tensor,
    new_residual: Tensor | None,
    eps: float,
) -> None:
    weight = weight.contiguous()
    hidden = x.shape[-1]
    function("rms_norm_f32")(
        x.data_ptr(),
        None if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        None if new_residual is None else new_residual.data_ptr(),
        eps,
        x.numel() // max(hidden, 1),
        hidden,
    )
