# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""SiLU(gate) * up in Triton, one read and one write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def silu_mul_kernel(gate_up, out, row_stride, features, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < features
    start = gate_up + row * row_stride
    gate = tl.load(start + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(start + features + offsets, mask=mask, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * features + offsets, result.to(out.dtype.element_ty), mask=mask)


def silu_mul(gate_up: Tensor) -> Tensor:
    features = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], features), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() == 0:
        return out
    rows = gate_up.reshape(-1, 2 * features)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    grid = (rows.shape[0], triton.cdiv(features, BLOCK))
    silu_mul_kernel[grid](rows, out, rows.stride(0), features, BLOCK=BLOCK, num_warps=4)
    return out
