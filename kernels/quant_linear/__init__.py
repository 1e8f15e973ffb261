"""A linear layer whose weight is stored as int8."""

import torch
from torch import Tensor

from kernels.checks import require_dtype, require_float
from kernels.dispatch import choose
from kernels.errors import ShapeError


def quant_linear(
    x: Tensor,
    weight_int8: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    dense: Tensor | None = None,
) -> Tensor:
    """Multiply by the transpose of an int8 weight with one scale per output channel.

    Args:
        x: [..., K] bf16 | fp16 | fp32.
        weight_int8: [N, K] int8, contiguous. The weight is weight_int8 * scale[:, None].
        scale: [N] fp32.
        bias: [N] bf16 | fp16 | fp32, added in fp32.
        dense: [N, K] x.dtype, the same weight dequantised. Memory for speed: an implementation may
            multiply by it where it is faster than int8, and may ignore it.

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
    _check_shapes(x, weight_int8, scale, bias, dense)
    result: Tensor = choose("quant_linear", x.device.type)(x, weight_int8, scale, bias, dense=dense)
    return result


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
