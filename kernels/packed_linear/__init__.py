"""A linear layer in fp32 whose row's result does not depend on the rows beside it."""

import torch
from torch import Tensor

from kernels.checks import FLOAT_DTYPES, require_dtype, require_float
from kernels.dispatch import choose, implementation_for
from kernels.errors import ShapeError

CHANNELS_OF_BLOCK = 32
"""Channels that lie side by side in a packed weight."""


def packed_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None = None, *, channels: int
) -> Tensor:
    """Multiply by the transpose of a packed weight.

    Blocked products choose their order of additions by the number of rows; here every row adds up
    its inputs in their order, so that a sequence gets the same bits alone and in any batch.

    Args:
        x: [..., K] fp32.
        packed: [ceil(N / 32), K, 32] bf16 | fp16 | fp32, contiguous, as `pack` lays it out.
            Products and sums are fp32.
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
    wanted = [-(-channels // CHANNELS_OF_BLOCK), x.shape[-1] if x.dim() else 0, CHANNELS_OF_BLOCK]
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
    """Lay 32 channels of a weight [N, K] side by side; zeros past the last."""
    channels, inputs = weight.shape
    blocks = -(-channels // CHANNELS_OF_BLOCK)
    padded = weight.new_zeros(blocks * CHANNELS_OF_BLOCK, inputs)
    padded[:channels] = weight
    return padded.view(blocks, CHANNELS_OF_BLOCK, inputs).transpose(1, 2).contiguous()


def unpack(packed: Tensor, channels: int) -> Tensor:
    """The weight [N, K] that `pack` was given."""
    return packed.transpose(1, 2).reshape(-1, packed.shape[1])[:channels]
