# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""RMS norm in Triton: one program holds one row, so it is read once, added residual and all."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    new_residual,
    x_stride,
    residual_stride,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < HIDDEN
    values = tl.load(x + row * x_stride + offsets, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(residual + row * residual_stride + offsets, mask=mask, other=0.0)
        # Rounded before it is normed: the norm must be of the residual that the next layer sees.
        rounded = (values + added.to(tl.float32)).to(new_residual.dtype.element_ty)
        tl.store(new_residual + row * HIDDEN + offsets, rounded, mask=mask)
        values = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, axis=0) / HIDDEN + eps)
    scale = tl.load(weight + offsets, mask=mask, other=0.0).to(tl.float32)
    normed = values * inverse * scale
    tl.store(out + row * HIDDEN + offsets, normed.to(out.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    rows = _rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows, rows, weight, out, out, eps, add=False)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_residual = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(_rows(x), _rows(residual), weight, normed, new_residual, eps, add=True)
    return normed, new_residual


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty((0, 1))
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _launch(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    out: Tensor,
    new_residual: Tensor,
    eps: float,
    *,
    add: bool,
) -> None:
    rows, hidden = x.shape
    if rows == 0:
        return
    block = triton.next_power_of_2(hidden)
    rms_norm_kernel[(rows,)](
        x,
        residual,
        weight.contiguous(),
        out,
        new_residual,
        x.stride(0),
        residual.stride(0),
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        ADD=add,
        num_warps=num_warps(block),
    )


def num_warps(block: int) -> int:
    """Threads for a row: about sixteen values each."""
    return max(1, min(16, block // 512))
