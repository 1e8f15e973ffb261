"""Int4 weights in groups with a scale and a zero point each: packing and numbers only."""

from typing import Final

import torch
from torch import Tensor

from backends.quantization.codes import GroupCodes

GROUP_SIZES: Final = (128, 64, 32, 16)
LARGEST: Final = 15
_SHRINKS: Final = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
_ROWS_AT_ONCE: Final = 1024


def group_size(inputs: int, wanted: int | None = None) -> int | None:
    """The largest group, up to `wanted`, that divides so many inputs; None: there is none."""
    fitting = (size for size in GROUP_SIZES if size <= (wanted or GROUP_SIZES[0]))
    return next((size for size in fitting if inputs % size == 0), None)


def quantize_int4(weight: Tensor, group: int) -> GroupCodes:
    """Round each group of a weight to 16 steps between its ends.

    The steps are tried between narrower ends too: what is cut off at an end can cost less than
    what finer steps win everywhere else. The least squared error counts.

    Args:
        weight: [N, K], any float dtype; K a multiple of `group`.
        group: inputs of a group.
    """
    parts = [
        _quantize(weight[first : first + _ROWS_AT_ONCE].float(), group)
        for first in range(0, weight.shape[0], _ROWS_AT_ONCE)
    ]
    codes, scales, zeros = (torch.cat([part[field] for part in parts]) for field in range(3))
    return GroupCodes(pack_nibbles(codes), scales, zeros)


def _quantize(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K] uint8, scales and zeros [N, G] of a few rows."""
    groups = weight.view(weight.shape[0], -1, group)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True)
    span = high.clamp(min=0) - low
    best: tuple[Tensor, ...] | None = None
    for shrink in _SHRINKS:
        scale = span * shrink / LARGEST
        scale = torch.where(scale > 0, scale, 1.0)
        zero = (-low * shrink / scale).round().clamp(0, LARGEST)
        codes = (groups / scale + zero).round().clamp(0, LARGEST)
        error = ((codes - zero) * scale - groups).square().sum(-1, keepdim=True)
        found = (error, codes, scale, zero)
        if best is None:
            best = found
        else:
            better = error < best[0]
            best = tuple(torch.where(better, a, b) for a, b in zip(found, best, strict=True))
    assert best is not None
    _, codes, scale, zero = best
    byte = torch.uint8
    return codes.to(byte).view(weight.shape), scale.squeeze(-1), zero.squeeze(-1).to(byte)


def pack_nibbles(codes: Tensor) -> Tensor:
    """[N, K] of 0..15 -> [N, K / 2] uint8, even inputs in the low four bits."""
    return codes[:, ::2] | codes[:, 1::2] << 4
