# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sharing a product's sum over K among programs, in Triton; imported by `kernel.py` files.

A layer of few rows has too few tiles of output to fill a GPU, so each program sums a part of K.
The parts are added in order by a second kernel: no atomics, so the same bits every time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FULL_GRID = 264
"""Programs that keep a large GPU's processors busy, two on each."""
MOST_SPLITS = 16
LEAST_TILES = 4
"""Tiles of K that a part is worth."""


@triton.jit
def sum_splits_kernel(
    partial, scale, bias, out, rows, channels, splits,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the parts [splits, rows, channels] of a row, then scale and bias."""
    row = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = n < channels
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        part = partial + (split * rows + row) * channels
        total += tl.load(part + n, mask=mask, other=0.0)
    if HAS_SCALE:
        total *= tl.load(scale + n, mask=mask, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * channels + n, total.to(out.dtype.element_ty), mask=mask)


def splits_for(tiles: int, inputs: int, block_k: int) -> int:
    """How many parts the sum over K has, given the tiles of output."""
    most = min(MOST_SPLITS, max(1, inputs // (LEAST_TILES * block_k)))
    return max(1, min(most, FULL_GRID // max(tiles, 1)))


def sum_splits(partial: Tensor, scale: Tensor | None, bias: Tensor | None, out: Tensor) -> None:
    """Launch the second kernel: partial [splits, rows, channels] fp32 -> out [rows, channels]."""
    splits, rows, channels = partial.shape
    options = sum_options()
    sum_splits_kernel[(triton.cdiv(channels, options["BLOCK"]), rows)](
        partial,
        out if scale is None else scale,
        out if bias is None else bias,
        out,
        rows,
        channels,
        splits,
        HAS_SCALE=scale is not None,
        HAS_BIAS=bias is not None,
        **options,
    )


def partial_sums(splits: int, rows: int, channels: int, like: Tensor) -> Tensor:
    """Room for the parts."""
    return torch.empty((splits, rows, channels), dtype=torch.float32, device=like.device)


def sum_options() -> dict[str, Any]:
    """Four channels a thread."""
    return {"BLOCK": 512, "num_warps": 4}
