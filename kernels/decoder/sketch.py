"""An int8 copy of a float head, which says where a row's largest product may be."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.decoder import PackedWeight
from kernels.native import function
from kernels.packed_linear import CHANNELS_OF_BLOCK, unpack
from kernels.quant_linear import copies

CHANNELS_AT_ONCE = 4096
"""Channels that are widened to fp32 at a time: a head may be large."""
MOST_CODE = 127


class Sketch(NamedTuple):
    """Products by it are off by at most `errors` times the length of the row (its L2 norm)."""

    weight: PackedWeight
    errors: Tensor
    """[N] fp32."""


def sketch_pays() -> bool:
    """Whether int8 products are so much faster here than a float head's own: measured now."""
    return bool(function("measure_sketch")())


def sketch_of(head: PackedWeight) -> Sketch | None:
    """Copy a float head without bias; None of any other.

    A product x w differs from the copy's by what rounding took from the channel (at most |x| times
    that rest's length), by what rounding the row to steps of its largest value / 32767 took, and by
    fp32's own roundings, of which each is at most 2^-24 of |x| |w| and no more than four fall on an
    input.
    """
    if head.scale is not None or head.group is not None or head.bias is not None:
        return None
    codes = torch.empty(head.channels, head.inputs, dtype=torch.int8)
    scale, errors = torch.empty(head.channels), torch.empty(head.channels)
    rounding = head.inputs**0.5 / 60_000 + (head.inputs + 8) * 2.0**-22
    blocks = CHANNELS_AT_ONCE // CHANNELS_OF_BLOCK
    for first, some in enumerate(torch.split(head.packed, blocks)):
        part = slice(first * CHANNELS_AT_ONCE, (first + 1) * CHANNELS_AT_ONCE)
        weight = unpack(some, len(codes[part]), head.inputs).float()
        scale[part] = weight.abs().amax(dim=1) / MOST_CODE
        steps = scale[part, None].clamp(min=torch.finfo(torch.float32).tiny)
        codes[part] = (weight / steps).round().nan_to_num().clamp(-MOST_CODE, MOST_CODE)
        rest = weight - codes[part] * scale[part, None]
        errors[part] = 1.01 * (rest.norm(dim=1) + rounding * weight.norm(dim=1))
    packed = copies(codes, scale, torch.float32).packed
    if packed is None:
        return None
    return Sketch(PackedWeight(packed, scale, None, head.channels, head.inputs), errors)
