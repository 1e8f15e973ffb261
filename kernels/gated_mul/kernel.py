# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""SiLU(gate) * up and GELU(gate) * up in Triton, one read and one write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def gated_mul_kernel(gate_up, out, row_stride, features, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < features
    start = gate_up + row * row_stride
    gate = tl.load(start + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(start + features + offsets, mask=mask, other=0.0).to(tl.float32)
    # (1 + tanh(u)) / 2 is sigmoid(2u); 2 * sqrt(2 / pi) = 1.59576912.
    inner = 1.59576912 * (gate + 0.044715 * gate * gate * gate) if GELU else gate
    result = gate * tl.sigmoid(inner) * up
    tl.store(out + row * features + offsets, result.to(out.dtype.element_ty), mask=mask)


def silu_mul(gate_up: Tensor) -> Tensor:
    return _launch(gate_up, gelu=False)


def gelu_mul(gate_up: Tensor) -> Tensor:
    return _launch(gate_up, gelu=True)


def _launch(gate_up: Tensor, *, gelu: bool) -> Tensor:
    features = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], features), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() == 0:
        return out
    rows = gate_up.reshape(-1, 2 * features)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    grid = (rows.shape[0], triton.cdiv(features, BLOCK))
    options = {"GELU": gelu, "BLOCK": BLOCK, "num_warps": 4}
    gated_mul_kernel[grid](rows, out, rows.stride(0), features, **options)
    return out
