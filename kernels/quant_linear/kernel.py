# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Int8 linear in Triton: dot products for one row, tensor cores for more, K split for few.

int8 is exact in bf16 and fp16, so the weight is multiplied as integers and the channel's scale is
applied once, to the fp32 sum.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.invariance import rows_to_choose_by
from kernels.quant_linear.reference import round_rows
from kernels.split_k import partial_sums, splits_for, sum_splits
from kernels.tuning import linear_class, tuned


@triton.jit
def gemv_kernel(
    x, weight, scale, bias, out, channels, inputs, part,
    HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One row times BLOCK_N channels: weight bytes are the cost, tensor cores would idle."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask = n < channels
    k = tl.arange(0, BLOCK_K)
    weight_rows = weight + n.to(tl.int64)[:, None] * inputs
    total = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    begin = tl.program_id(1) * part
    for start in range(begin, tl.minimum(begin + part, inputs), BLOCK_K):
        k_mask = start + k < inputs
        values = tl.load(x + start + k, mask=k_mask, other=0.0).to(tl.float32)
        mask = n_mask[:, None] & k_mask[None, :]
        # Read once by one program: not worth a place in the cache.
        weights = tl.load(
            weight_rows + (start + k)[None, :], mask=mask, other=0, eviction_policy="evict_first"
        )
        total += weights.to(tl.float32) * values[None, :]
    result = tl.sum(total, axis=1)
    if SPLIT:
        tl.store(out + tl.program_id(1).to(tl.int64) * channels + n, result, mask=n_mask)
    else:
        result *= tl.load(scale + n, mask=n_mask, other=0.0)
        if HAS_BIAS:
            result += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)
        tl.store(out + n, result.to(out.dtype.element_ty), mask=n_mask)


@triton.jit
def gemm_kernel(
    x, weight, scale, bias, out, x_stride, rows, channels, inputs, part,
    HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr, DOT_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows times BLOCK_N channels, over `part` inputs."""
    # Consecutive programs share weight columns, so a weight tile is read from L2 after its first.
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    split = tl.program_id(2)
    k = tl.arange(0, BLOCK_K)
    m_mask, n_mask = m < rows, n < channels
    x_rows = x + m[:, None] * x_stride
    weight_columns = weight + n[None, :] * inputs
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(split * part, tl.minimum((split + 1) * part, inputs), BLOCK_K):
        k_mask = start + k < inputs
        values = tl.load(
            x_rows + (start + k)[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0
        )
        weights = tl.load(
            weight_columns + (start + k)[:, None], mask=k_mask[:, None] & n_mask[None, :], other=0
        )
        total = tl.dot(values.to(DOT_DTYPE), weights.to(DOT_DTYPE), total, input_precision="ieee")
    out_mask = m_mask[:, None] & n_mask[None, :]
    if SPLIT:
        out_rows = (split * rows + m) * channels
    else:
        out_rows = m * channels
        total *= tl.load(scale + n, mask=n_mask, other=0.0)[None, :]
        if HAS_BIAS:
            total += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)[None, :]
    tl.store(out + out_rows[:, None] + n[None, :], total.to(out.dtype.element_ty), mask=out_mask)


def quant_linear(
    x: Tensor,
    weight_int8: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    dense: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    del dense  # Reading half the bytes is the point on a GPU.
    if packed is not None and x.dtype == torch.float32:
        x = round_rows(x)
    rows = x.numel() // max(x.shape[-1], 1)
    return multiply(x, weight_int8, scale, bias, choose_by=rows_to_choose_by(rows))


def multiply(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *, choose_by: int
) -> Tensor:
    """Launch the kernel that is fastest for `choose_by` rows; weight [N, K] int8, or x.dtype."""
    channels, inputs = weight.shape
    out = torch.empty((*x.shape[:-1], channels), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    rows = x.reshape(-1, inputs) if inputs else x.new_zeros((out.numel() // channels, 0))
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    count = rows.shape[0]
    options = gemv_options() if choose_by == 1 else gemm_options(choose_by, x.dtype)
    if choose_by == count:
        shape = linear_class(count, channels, inputs, x.dtype)
        options = tuned("quant_linear", shape, x.device, options)
    tiles = triton.cdiv(channels, options["BLOCK_N"])
    if choose_by > 1:
        tiles *= triton.cdiv(choose_by, options["BLOCK_M"])
    splits = splits_for(tiles, inputs, options["BLOCK_K"])
    part = triton.cdiv(triton.cdiv(inputs, splits), options["BLOCK_K"]) * options["BLOCK_K"]
    target = partial_sums(splits, count, channels, x) if splits > 1 else out
    tensors = (rows, weight.contiguous(), scale, out if bias is None else bias, target)
    flags = {"HAS_BIAS": bias is not None, "SPLIT": splits > 1}
    if choose_by == 1:
        gemv_kernel[(tiles, splits)](*tensors, channels, inputs, part, **flags, **options)
    else:
        grid = (
            triton.cdiv(count, options["BLOCK_M"]),
            triton.cdiv(channels, options["BLOCK_N"]),
            splits,
        )
        gemm_kernel[grid](
            *tensors, rows.stride(0), count, channels, inputs, part, **flags, **options
        )
    if splits > 1:
        sum_splits(target, scale, bias, out)
    return out


def candidates(rows: int) -> Iterator[dict[str, Any]]:
    """Options worth measuring, all of which compute the same."""
    if rows == 1:
        for block_n, block_k, warps in product((4, 8, 16, 32), (256, 512, 1024), (2, 4, 8)):
            if block_n * block_k <= 1024 * 4 * warps:
                yield {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps}
        return
    blocks = (16, 32) if rows <= 32 else (32, 64, 128)
    for block_m, block_n, block_k in product(blocks, (32, 64, 128), (64, 128)):
        for warps, stages in ((4, 3), (4, 4), (8, 3)):
            yield {
                "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
                "num_warps": warps, "num_stages": stages,
            }  # fmt: skip


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
