# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Int8 linear in Triton: dot products for few rows, tensor cores for more.

int8 is exact in bf16 and fp16, so the weight is multiplied as integers and the channel's scale is
applied once, to the fp32 sum.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

GEMV_ROWS = 4


@triton.jit
def gemv_kernel(
    x, weight, scale, bias, out, x_stride, channels, inputs,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One row times BLOCK_N channels: weight bytes are the cost, tensor cores would idle."""
    row = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask = n < channels
    k = tl.arange(0, BLOCK_K)
    weight_rows = weight + n.to(tl.int64)[:, None] * inputs
    total = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k_mask = start + k < inputs
        values = tl.load(x + row * x_stride + start + k, mask=k_mask, other=0.0).to(tl.float32)
        mask = n_mask[:, None] & k_mask[None, :]
        weights = tl.load(weight_rows + (start + k)[None, :], mask=mask, other=0)
        total += weights.to(tl.float32) * values[None, :]
    result = tl.sum(total, axis=1) * tl.load(scale + n, mask=n_mask, other=0.0)
    if HAS_BIAS:
        result += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)
    tl.store(out + row * channels + n, result.to(out.dtype.element_ty), mask=n_mask)


@triton.jit
def gemm_kernel(
    x, weight, scale, bias, out, x_stride, rows, channels, inputs,
    HAS_BIAS: tl.constexpr, DOT_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows times BLOCK_N channels."""
    # Consecutive programs share weight columns, so a weight tile is read from L2 after its first.
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    m_mask, n_mask = m < rows, n < channels
    x_rows = x + m[:, None] * x_stride
    weight_columns = weight + n[None, :] * inputs
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k_mask = start + k < inputs
        values = tl.load(
            x_rows + (start + k)[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0
        )
        weights = tl.load(
            weight_columns + (start + k)[:, None], mask=k_mask[:, None] & n_mask[None, :], other=0
        )
        total = tl.dot(values.to(DOT_DTYPE), weights.to(DOT_DTYPE), total, input_precision="ieee")
    result = total * tl.load(scale + n, mask=n_mask, other=0.0)[None, :]
    if HAS_BIAS:
        result += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)[None, :]
    out_mask = m_mask[:, None] & n_mask[None, :]
    tl.store(
        out + m[:, None] * channels + n[None, :], result.to(out.dtype.element_ty), mask=out_mask
    )


def quant_linear(
    x: Tensor,
    weight_int8: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    dense: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    del dense, packed  # Reading half the bytes is the point on a GPU.
    channels, inputs = weight_int8.shape
    out = torch.empty((*x.shape[:-1], channels), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    rows = x.reshape(-1, inputs) if inputs else x.new_zeros((out.numel() // channels, 0))
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    tensors = (rows, weight_int8.contiguous(), scale, out if bias is None else bias, out)
    count = rows.shape[0]
    if count <= GEMV_ROWS:
        options = gemv_options()
        grid = (triton.cdiv(channels, options["BLOCK_N"]), count)
        gemv_kernel[grid](
            *tensors, rows.stride(0), channels, inputs, HAS_BIAS=bias is not None, **options
        )
    else:
        options = gemm_options(count, x.dtype)
        grid = (triton.cdiv(count, options["BLOCK_M"]), triton.cdiv(channels, options["BLOCK_N"]))
        gemm_kernel[grid](
            *tensors, rows.stride(0), count, channels, inputs, HAS_BIAS=bias is not None, **options
        )
    return out


def gemv_options() -> dict[str, Any]:
    """Few channels per program, so that a small layer still fills the GPU."""
    return {"BLOCK_N": 8, "BLOCK_K": 512, "num_warps": 4}


def gemm_options(rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """Tile sizes by rows; fp32 multiplies exactly, without tensor cores, in smaller tiles."""
    if dtype == torch.float32:
        return {
            "DOT_DTYPE": tl.float32, "BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32,
            "num_warps": 4, "num_stages": 2,
        }  # fmt: skip
    dot_dtype = tl.float16 if dtype == torch.float16 else tl.bfloat16
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    return {
        "DOT_DTYPE": dot_dtype, "BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": 64,
        "num_warps": 8 if block_m == 32 else 4, "num_stages": 3,
    }  # fmt: skip
