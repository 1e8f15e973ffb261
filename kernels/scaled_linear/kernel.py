# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""8-bit linear in Triton: one kernel rounds the rows, one multiplies on 8-bit tensor cores."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.errors import KernelUnavailableError
from kernels.invariance import rows_to_choose_by
from kernels.rounding import encode, scale_of
from kernels.tuning import linear_class, tuned


@triton.jit
def encode_kernel(
    x, codes, scales, x_stride, inputs, INT8: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    values = tl.load(x + row * x_stride + k, mask=k < inputs, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(tl.abs(values), axis=0) + tl.zeros((1,), tl.float32), INT8)
    tl.store(scales + row + tl.arange(0, 1), scale)
    rounded = encode(values, tl.broadcast_to(scale, (BLOCK,)), INT8)
    tl.store(codes + row * inputs + k, rounded.to(codes.dtype.element_ty), mask=k < inputs)


@triton.jit
def gemm_kernel(
    codes, row_scale, weight, scale, bias, out, rows, channels, inputs,
    HAS_BIAS: tl.constexpr, INT8: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows times BLOCK_N channels."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    m_mask, n_mask = m < rows, n < channels
    code_rows = codes + m[:, None] * inputs
    weight_columns = weight + n[None, :] * inputs
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32 if INT8 else tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k_mask = start + k < inputs
        left = tl.load(
            code_rows + (start + k)[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0
        )
        right = tl.load(
            weight_columns + (start + k)[:, None], mask=k_mask[:, None] & n_mask[None, :], other=0.0
        )
        if INT8:
            total = tl.dot(left, right, total, out_dtype=tl.int32)
        else:
            total = tl.dot(left, right, total)
    row_scales = tl.load(row_scale + m, mask=m_mask, other=0.0)[:, None]
    result = total.to(tl.float32) * row_scales * tl.load(scale + n, mask=n_mask, other=0.0)[None, :]
    if HAS_BIAS:
        result += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + m[:, None] * channels + n[None, :], result.to(out.dtype.element_ty),
        mask=m_mask[:, None] & n_mask[None, :],
    )  # fmt: skip


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    channels, inputs = weight.shape
    out = torch.empty((*x.shape[:-1], channels), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    int8 = weight.dtype == torch.int8
    if not int8 and x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 9):
        raise KernelUnavailableError(
            f"{torch.cuda.get_device_name(x.device)} has no fp8 e4m3 tensor cores; use int8"
        )
    rows = x.reshape(-1, inputs) if inputs else x.new_zeros((out.numel() // channels, 0))
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    count = rows.shape[0]
    codes = torch.empty((count, inputs), dtype=weight.dtype, device=x.device)
    row_scale = torch.empty(count, dtype=torch.float32, device=x.device)
    encode_kernel[(count,)](
        rows, codes, row_scale, rows.stride(0), inputs, INT8=int8, **encode_options(inputs)
    )
    choose_by = rows_to_choose_by(count)
    options = gemm_options(choose_by)
    if choose_by == count:
        shape = linear_class(count, channels, inputs, weight.dtype)
        options = tuned("scaled_linear", shape, x.device, options)
    grid = (triton.cdiv(count, options["BLOCK_M"]), triton.cdiv(channels, options["BLOCK_N"]))
    gemm_kernel[grid](
        codes, row_scale, weight, scale, out if bias is None else bias, out,
        count, channels, inputs, HAS_BIAS=bias is not None, INT8=int8, **options,
    )  # fmt: skip
    return out


def candidates(rows: int) -> Iterator[dict[str, Any]]:
    """Options worth measuring, all of which compute the same."""
    blocks = (16, 32) if rows <= 32 else (64, 128)
    for block_m, block_n, block_k in product(blocks, (64, 128, 256), (64, 128)):
        for warps, stages in ((4, 3), (4, 4), (8, 3), (8, 4)):
            yield {
                "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
                "num_warps": warps, "num_stages": stages,
            }  # fmt: skip


def encode_options(inputs: int) -> dict[str, Any]:
    """A program holds a row: about sixteen values a thread."""
    block = triton.next_power_of_2(max(inputs, 1))
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 512))}


def gemm_options(rows: int) -> dict[str, Any]:
    """Tile sizes by rows; 8-bit tensor cores take 32 inputs at least."""
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64 if rows <= 256 else 128
    return {
        "BLOCK_M": block_m, "BLOCK_N": 128 if block_m >= 64 else 64, "BLOCK_K": 128,
        "num_warps": 8 if block_m == 128 else 4, "num_stages": 3,
    }  # fmt: skip
