"""A linear layer in fp32 whose row's result does not depend on the rows beside it."""

import torch
from torch import Tensor

from kernels.checks import FLOAT_DTYPES, require_dtype, require_float
from kernels.dispatch import choose, implementation_for
from kernels.errors import ShapeError

CHANNELS_OF_BLOCK = 32
"""Channels that lie side by side in a packed weight."""
INPUTS_OF_TILE = 32
"""A packed bf16 weight's inputs are padded to a multiple of this."""


def packed_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None = None, *, channels: int
) -> Tensor:
    """Multiply by the transpose of a packed weight.

    Blocked products choose their order of additions by the number of rows; here every row adds up
    its inputs in their order, so that a sequence gets the same bits alone and in any batch.

    Args:
        x: [..., K] fp32.
        packed: [ceil(N / 32), K, 32] fp16 | fp32, or [ceil(N / 32), ceil(K / 32) * 16, 64] bf16,
            contiguous, as `pack` lays it out. Products and sums are fp32.
        bias: [N] bf16 | fp16 | fp32.
        channels: N.

    Returns:
        [..., N] fp32.

    Raises:
        ShapeError: sizes disagree.
        DTypeError: a tensor has another dtype than given above.
    """
    require_dtype(x, "x", torch.float32)
    require_float(packed, "packed")
    wanted = _packed_shape(channels, x.shape[-1] if x.dim() else 0, packed.dtype)
    if x.dim() == 0 or list(packed.shape) != wanted or not packed.is_contiguous():
        raise ShapeError(
            f"packed is {list(packed.shape)} but x is {list(x.shape)} and channels {channels}; "
            f"need {wanted}, contiguous"
        )
    if bias is not None:
        require_float(bias, "bias")
        if bias.shape != (channels,):
            raise ShapeError(f"bias is {list(bias.shape)}; need [{channels}]")
    result: Tensor = choose("packed_linear", x.device.type)(x, packed, bias, channels=channels)
    return result


def is_faster_packed(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a float weight should be packed where it lies, given the dtype of the activations."""
    return (
        dtype == torch.float32
        and weight.dtype in FLOAT_DTYPES
        and weight.device.type == "cpu"
        and implementation_for("cpu") == "native"
    )


def pack(weight: Tensor) -> Tensor:
    """Lay 32 channels of a weight [N, K] side by side; zeros past the last.

    bf16 lies in pairs of inputs, with zeros past the last of 32, as tiles of AMX multiply it.
    """
    channels, inputs = weight.shape
    blocks = -(-channels // CHANNELS_OF_BLOCK)
    paired = weight.dtype == torch.bfloat16
    padded_inputs = -(-inputs // INPUTS_OF_TILE) * INPUTS_OF_TILE if paired else inputs
    padded = weight.new_zeros(blocks * CHANNELS_OF_BLOCK, padded_inputs)
    padded[:channels, :inputs] = weight
    if not paired:
        return padded.view(blocks, CHANNELS_OF_BLOCK, inputs).transpose(1, 2).contiguous()
    pairs = padded.view(blocks, CHANNELS_OF_BLOCK, padded_inputs // 2, 2).transpose(1, 2)
    return pairs.reshape(blocks, padded_inputs // 2, 2 * CHANNELS_OF_BLOCK)


def side_by_side(packed: Tensor, inputs: int) -> Tensor:
    """A packed weight as [blocks, K, 32], whatever its dtype."""
    if packed.dtype != torch.bfloat16:
        return packed
    blocks, pairs, _ = packed.shape
    split = packed.view(blocks, pairs, CHANNELS_OF_BLOCK, 2).transpose(2, 3)
    return split.reshape(blocks, 2 * pairs, CHANNELS_OF_BLOCK)[:, :inputs]


def unpack(packed: Tensor, channels: int, inputs: int) -> Tensor:
    """The weight [N, K] that `pack` was given."""
    return side_by_side(packed, inputs).transpose(1, 2).reshape(-1, inputs)[:channels]


def _packed_shape(channels: int, inputs: int, dtype: torch.dtype) -> list[int]:
    blocks = -(-channels // CHANNELS_OF_BLOCK)
    if dtype != torch.bfloat16:
        return [blocks, inputs, CHANNELS_OF_BLOCK]
    return [blocks, -(-inputs // INPUTS_OF_TILE) * INPUTS_OF_TILE // 2, 2 * CHANNELS_OF_BLOCK]
