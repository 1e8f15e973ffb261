"""A linear layer whose weight is stored as int8."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.checks import require_dtype, require_float, require_one_device, require_read_packed
from kernels.dispatch import choose, implementation_for
from kernels.errors import ShapeError

PACKED_CHANNELS = 32
"""Channels that lie side by side in a packed weight."""
PACKED_INPUTS = 64
"""A packed weight's inputs are padded to a multiple of this."""
MOST_PACKED_INPUTS = 2**16
"""Sums of more products of two bytes might pass 32 bits."""


class Copies(NamedTuple):
    """Further forms of one weight: memory for speed. None: it would not be faster here."""

    dense: Tensor | None
    packed: Tensor | None


def quant_linear(
    x: Tensor,
    weight_int8: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    dense: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Multiply by the transpose of an int8 weight with one scale per output channel.

    Args:
        x: [..., K] bf16 | fp16 | fp32.
        weight_int8: [N, K] int8, contiguous. The weight is weight_int8 * scale[:, None].
        scale: [N] fp32.
        bias: [N] bf16 | fp16 | fp32, added in fp32.
        dense: [N, K] x.dtype, the same weight dequantised. An implementation may read it where
            that is faster, and may ignore it.
        packed: [ceil(N / 32), bytes] int8, the same weight as `copies` lays it out. With it, rows
            of fp32 are rounded to 16-bit integers, their largest value at 32767 steps: products
            of integers add up exactly, in any order. C++ reads nothing else of the weight for them:
            weight_int8 may then lie on the meta device.

    Returns:
        [..., N], x.dtype, accumulated in fp32.

    Raises:
        ShapeError: sizes disagree.
        DTypeError: a tensor has another dtype than given above.
    """
    require_float(x, "x")
    if weight_int8.dtype != torch.int8:
        require_dtype(weight_int8, "weight_int8", torch.int8)
    if scale.dtype != torch.float32:
        require_dtype(scale, "scale", torch.float32)
    if bias is not None:
        require_float(bias, "bias")
    if dense is not None:
        require_float(dense, "dense", like=x.dtype)
    require_read_packed(weight_int8, packed if x.dtype == torch.float32 else None, x)
    require_one_device(x, None if weight_int8.is_meta else weight_int8, scale, bias, dense, packed)
    _check_shapes(x, weight_int8, scale, bias, dense)
    if packed is not None:
        _check_packed(weight_int8, packed)
    result: Tensor = choose("quant_linear", x.device.type)(
        x, weight_int8, scale, bias, dense=dense, packed=packed
    )
    return result


def copies(weight_int8: Tensor, scale: Tensor, dtype: torch.dtype) -> Copies:
    """Make the forms of a weight that are faster where it lies, once, when it is loaded.

    Args:
        weight_int8: [N, K] int8.
        scale: [N] fp32.
        dtype: of the activations to come.
    """
    implementation = implementation_for(weight_int8.device.type)
    few = weight_int8.shape[1] <= MOST_PACKED_INPUTS
    if implementation == "native" and dtype == torch.float32 and few:
        return Copies(dense=None, packed=_pack(weight_int8))
    if implementation in ("native", "torch_cpu"):
        return Copies(dense=(weight_int8.float() * scale[:, None]).to(dtype), packed=None)
    return Copies(dense=None, packed=None)


def _pack(weight_int8: Tensor) -> Tensor:
    """Lay 32 channels side by side, four inputs of each together; then the channels' sums.

    Both a vector's and a tile's products of bytes take their weights in this order.
    """
    channels, inputs = weight_int8.shape
    blocks, fours = -(-channels // PACKED_CHANNELS), -(-inputs // PACKED_INPUTS) * 16
    padded = weight_int8.new_zeros(blocks * PACKED_CHANNELS, 4 * fours)
    padded[:channels, :inputs] = weight_int8
    split = padded.view(blocks, PACKED_CHANNELS, fours, 4).transpose(1, 2)
    sums = padded.sum(dim=1, dtype=torch.int32).view(blocks, PACKED_CHANNELS).view(torch.int8)
    return torch.cat((split.reshape(blocks, -1), sums), dim=1)


def unpack(packed: Tensor, channels: int, inputs: int) -> Tensor:
    """The codes [N, K] int8 that a packed weight was made of."""
    fours = packed[:, : -PACKED_CHANNELS * 4].view(len(packed), -1, PACKED_CHANNELS, 4)
    return fours.transpose(1, 2).reshape(len(packed) * PACKED_CHANNELS, -1)[:channels, :inputs]


def _packed_bytes(inputs: int) -> int:
    """Of one block: its codes and its sums."""
    return PACKED_CHANNELS * (-(-inputs // PACKED_INPUTS) * PACKED_INPUTS + 4)


def _check_shapes(
    x: Tensor, weight_int8: Tensor, scale: Tensor, bias: Tensor | None, dense: Tensor | None
) -> None:
    if weight_int8.dim() != 2 or x.dim() == 0 or weight_int8.shape[1] != x.shape[-1]:
        raise ShapeError(
            f"weight_int8 is {list(weight_int8.shape)} but x is {list(x.shape)}; "
            "need [N, K] and [..., K]"
        )
    channels = weight_int8.shape[0]
    if scale.dim() != 1 or scale.shape[0] != channels:
        raise ShapeError(f"scale is {list(scale.shape)}; need [{channels}]")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != channels):
        raise ShapeError(f"bias is {list(bias.shape)}; need [{channels}]")
    if dense is not None and dense.shape != weight_int8.shape:
        raise ShapeError(
            f"dense is {list(dense.shape)} but weight_int8 is {list(weight_int8.shape)}"
        )


def _check_packed(weight_int8: Tensor, packed: Tensor) -> None:
    channels, inputs = weight_int8.shape
    wanted = (-(-channels // PACKED_CHANNELS), _packed_bytes(inputs))
    if packed.dtype != torch.int8:
        require_dtype(packed, "packed", torch.int8)
    if packed.shape != wanted or not packed.is_contiguous():
        raise ShapeError(f"packed is {list(packed.shape)}; need {list(wanted)}, contiguous")
