# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Codes in groups in Triton: dot products for one row, tensor cores for more, K split for few.

Where a byte holds two neighbouring inputs, codes are never interleaved: the low halves multiply the
even inputs of x and the high halves the odd ones. Codes less their integer zero points are exact in
bf16 and fp16; a tile lies in one group, whose scale multiplies the tile's fp32 sum.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.group_quant_linear import codes_of_byte
from kernels.invariance import rows_to_choose_by
from kernels.quant_linear.reference import round_rows
from kernels.split_k import partial_sums, splits_for, sum_splits
from kernels.tuning import linear_class, tuned

MOST_TILE = 128
"""Inputs of a tile; a group may be longer, not shorter."""


@triton.jit
def _zeros_of(zero, group_offsets, mask, HAS_ZERO: tl.constexpr, PER_BYTE: tl.constexpr):
    if HAS_ZERO:
        return tl.load(zero + group_offsets, mask=mask, other=0).to(tl.float32)
    return tl.full(group_offsets.shape, 0.0 if PER_BYTE == 1 else 8.0, tl.float32)


@triton.jit
def gemv_kernel(
    x, weight, scale, zero, bias, out, channels, inputs, groups, group_size, part,
    PER_BYTE: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """One row times BLOCK_N channels, BLOCK_J bytes of each at once."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_mask = n < channels
    j = tl.arange(0, BLOCK_J)
    weight_rows = weight + n.to(tl.int64)[:, None] * (inputs // PER_BYTE)
    total = tl.zeros((BLOCK_N, BLOCK_J), dtype=tl.float32)
    begin = tl.program_id(1) * part
    for start in range(begin, tl.minimum(begin + part, inputs), PER_BYTE * BLOCK_J):
        group = n.to(tl.int64) * groups + start // group_size
        zeros = _zeros_of(zero, group, n_mask, HAS_ZERO, PER_BYTE)[:, None]
        scales = tl.load(scale + group, mask=n_mask, other=0.0).to(tl.float32)[:, None]
        codes = tl.load(
            weight_rows + (start // PER_BYTE + j)[None, :], mask=n_mask[:, None], other=0,
            eviction_policy="evict_first",
        )  # fmt: skip
        if PER_BYTE == 1:
            values = tl.load(x + start + j).to(tl.float32)[None, :]
            total += (codes.to(tl.float32) - zeros) * values * scales
        else:
            even = tl.load(x + start + 2 * j).to(tl.float32)[None, :]
            odd = tl.load(x + start + 2 * j + 1).to(tl.float32)[None, :]
            low = (codes & 15).to(tl.float32) - zeros
            high = (codes >> 4).to(tl.float32) - zeros
            total += (low * even + high * odd) * scales
    result = tl.sum(total, axis=1)
    if SPLIT:
        tl.store(out + tl.program_id(1).to(tl.int64) * channels + n, result, mask=n_mask)
    else:
        if HAS_BIAS:
            result += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)
        tl.store(out + n, result.to(out.dtype.element_ty), mask=n_mask)


@triton.jit
def gemm_kernel(
    x, weight, scale, zero, bias, out, x_stride, rows, channels, inputs, groups, group_size, part,
    PER_BYTE: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows times BLOCK_N channels, over `part` inputs."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    split = tl.program_id(2)
    # A dot takes 16 inputs at least; what a short group leaves of them is masked.
    j = tl.arange(0, 16 if BLOCK_J < 16 else BLOCK_J)
    j_mask = j < BLOCK_J
    m_mask, n_mask = m < rows, n < channels
    x_mask = m_mask[:, None] & j_mask[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(split * part, tl.minimum((split + 1) * part, inputs), PER_BYTE * BLOCK_J):
        group = n * groups + start // group_size
        zeros = _zeros_of(zero, group, n_mask, HAS_ZERO, PER_BYTE)[None, :]
        scales = tl.load(scale + group, mask=n_mask, other=0.0).to(tl.float32)[None, :]
        first = x + m[:, None] * x_stride + (start + PER_BYTE * j)[None, :]
        even = tl.load(first, mask=x_mask, other=0.0).to(DOT_DTYPE)
        codes = tl.load(
            weight + n[None, :] * (inputs // PER_BYTE) + (start // PER_BYTE + j)[:, None],
            mask=j_mask[:, None] & n_mask[None, :], other=0,
        )  # fmt: skip
        if PER_BYTE == 1:
            own = (codes.to(tl.float32) - zeros).to(DOT_DTYPE)
            tile = tl.dot(even, own, input_precision="ieee")
        else:
            odd = tl.load(first + 1, mask=x_mask, other=0.0).to(DOT_DTYPE)
            low = ((codes & 15).to(tl.float32) - zeros).to(DOT_DTYPE)
            high = ((codes >> 4).to(tl.float32) - zeros).to(DOT_DTYPE)
            tile = tl.dot(even, low, input_precision="ieee")
            tile = tl.dot(odd, high, tile, input_precision="ieee")
        total += tile * scales
    out_mask = m_mask[:, None] & n_mask[None, :]
    if SPLIT:
        out_rows = (split * rows + m) * channels
    else:
        out_rows = m * channels
        if HAS_BIAS:
            total += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)[None, :]
    tl.store(out + out_rows[:, None] + n[None, :], total.to(out.dtype.element_ty), mask=out_mask)


def group_quant_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    if packed is not None:
        x = round_rows(x)
    channels, inputs = codes.shape[0], x.shape[-1]
    out = torch.empty((*x.shape[:-1], channels), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    rows = x.reshape(-1, inputs)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    count, groups = rows.shape[0], scale.shape[1]
    size, per_byte = inputs // groups, codes_of_byte(codes)
    choose_by = rows_to_choose_by(count)
    if choose_by == 1:
        options = gemv_options(size, per_byte)
    else:
        options = gemm_options(choose_by, size, x.dtype, per_byte)
    if choose_by == count:
        shape = shape_class(count, channels, inputs, x.dtype, size, per_byte)
        options = tuned("group_quant_linear", shape, x.device, options)
    tiles = triton.cdiv(channels, options["BLOCK_N"])
    if choose_by > 1:
        tiles *= triton.cdiv(choose_by, options["BLOCK_M"])
    block_k = per_byte * options["BLOCK_J"]
    splits = splits_for(tiles, inputs, block_k)
    part = triton.cdiv(triton.cdiv(inputs, splits), block_k) * block_k
    target = partial_sums(splits, count, channels, x) if splits > 1 else out
    tensors = (
        rows,
        codes.contiguous(),
        scale.contiguous(),
        codes if zero is None else zero.contiguous(),
        out if bias is None else bias,
        target,
    )
    flags = {
        "PER_BYTE": per_byte,
        "HAS_ZERO": zero is not None,
        "HAS_BIAS": bias is not None,
        "SPLIT": splits > 1,
    }
    sizes = (channels, inputs, groups, size, part)
    if choose_by == 1:
        gemv_kernel[(tiles, splits)](*tensors, *sizes, **flags, **options)
    else:
        grid = (
            triton.cdiv(count, options["BLOCK_M"]),
            triton.cdiv(channels, options["BLOCK_N"]),
            splits,
        )
        gemm_kernel[grid](*tensors, rows.stride(0), count, *sizes, **flags, **options)
    if splits > 1:
        sum_splits(target, None, bias, out)
    return out


def shape_class(
    rows: int, channels: int, inputs: int, dtype: torch.dtype, group_size: int, per_byte: int
) -> str:
    """What `tuned` knows options by."""
    shape = linear_class(rows, channels, inputs, dtype)
    return f"{shape}-{8 // per_byte}bit-g{group_size}"


def candidates(rows: int, group_size: int, per_byte: int) -> Iterator[dict[str, Any]]:
    """Options worth measuring, all of which compute the same; tiles lie in one group."""
    longest = tile_bytes(group_size, per_byte)
    tiles = [size for size in (16, 32, 64) if size <= longest] or [longest]
    if rows == 1:
        for block_n, block_j, warps in product((4, 8, 16, 32, 64), tiles, (1, 2, 4, 8)):
            yield {"BLOCK_N": block_n, "BLOCK_J": block_j, "num_warps": warps}
        return
    blocks = (16, 32) if rows <= 32 else (32, 64, 128)
    for block_m, block_n, block_j in product(blocks, (32, 64, 128), tiles):
        for warps, stages in ((4, 3), (4, 4), (8, 3)):
            yield {
                "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_J": block_j,
                "num_warps": warps, "num_stages": stages,
            }  # fmt: skip


def tile_bytes(group_size: int, per_byte: int) -> int:
    """Bytes of a channel in a tile: the largest power of two of inputs that divides a group."""
    return min(MOST_TILE, group_size & -group_size) // per_byte


def gemv_options(group_size: int, per_byte: int) -> dict[str, Any]:
    """Channels enough that a tile is 1 KB or more, few enough that a small layer fills the GPU."""
    return {"BLOCK_N": 16, "BLOCK_J": tile_bytes(group_size, per_byte), "num_warps": 4}


def gemm_options(rows: int, group_size: int, dtype: torch.dtype, per_byte: int) -> dict[str, Any]:
    """Tile sizes by rows; fp32 multiplies exactly, without tensor cores, in smaller tiles."""
    block_j = tile_bytes(group_size, per_byte)
    if dtype == torch.float32:
        return {
            "DOT_DTYPE": tl.float32, "BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_J": min(16, block_j),
            "num_warps": 4, "num_stages": 2,
        }  # fmt: skip
    dot_dtype = tl.float16 if dtype == torch.float16 else tl.bfloat16
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    return {
        "DOT_DTYPE": dot_dtype, "BLOCK_M": block_m, "BLOCK_N": 64,
        "BLOCK_J": min(16 if block_m == 64 else 32, block_j),
        "num_warps": 8 if block_m == 64 else 4, "num_stages": 3,
    }  # fmt: skip
