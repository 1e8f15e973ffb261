"""A linear layer whose weight is stored as int4, in groups with a scale and a zero point each."""

import torch
from torch import Tensor

from kernels.checks import require_dtype, require_float
from kernels.dispatch import choose
from kernels.errors import ShapeError

GROUP_MULTIPLE = 16
SYMMETRIC_ZERO = 8
"""The zero point of weights that are stored without one."""


def int4_linear(
    x: Tensor,
    weight_int4: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    """Multiply by the transpose of an int4 weight with one scale and zero point per group.

    A group is `K // G` inputs of one output channel, a multiple of 16.

    Args:
        x: [..., K] bf16 | fp16 | fp32.
        weight_int4: [N, K // 2] uint8, contiguous. The code of input 2j lies in the low four bits
            of byte j, that of 2j + 1 in the high ones; 0..15.
        scale: [N, G] bf16 | fp16 | fp32. The weight is (code - zero) * scale of its group.
        zero: [N, G] uint8, 0..15; None: 8 everywhere.
        bias: [N] bf16 | fp16 | fp32, added in fp32.
        packed: the same codes as `pack` lays them out. An implementation may read these where that
            is faster, and may ignore them.

    Returns:
        [..., N], x.dtype, accumulated in fp32.

    Raises:
        ShapeError: sizes disagree, or the groups are no multiple of 16.
        DTypeError: a tensor has another dtype than given above.

    Source: Frantar et al. 2023, "GPTQ"; the codes' order is compressed-tensors' "pack-quantized".
    """
    require_float(x, "x")
    require_dtype(weight_int4, "weight_int4", torch.uint8)
    require_float(scale, "scale")
    if zero is not None:
        require_dtype(zero, "zero", torch.uint8)
    if bias is not None:
        require_float(bias, "bias")
    _check_shapes(x, weight_int4, scale, zero, bias)
    result: Tensor = choose("int4_linear", x.device.type)(
        x, weight_int4, scale, zero, bias, packed=packed
    )
    return result


def _check_shapes(
    x: Tensor, weight_int4: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None
) -> None:
    if weight_int4.dim() != 2 or x.dim() == 0 or 2 * weight_int4.shape[1] != x.shape[-1]:
        raise ShapeError(
            f"weight_int4 is {list(weight_int4.shape)} but x is {list(x.shape)}; "
            "need [N, K / 2] and [..., K]"
        )
    channels, inputs = weight_int4.shape[0], x.shape[-1]
    if scale.dim() != 2 or scale.shape[0] != channels or not scale.shape[1]:
        raise ShapeError(f"scale is {list(scale.shape)}; need [{channels}, G]")
    groups = scale.shape[1]
    if inputs % groups or inputs // groups % GROUP_MULTIPLE:
        raise ShapeError(
            f"{groups} groups of {inputs} inputs; a group must be a multiple of {GROUP_MULTIPLE}"
        )
    if zero is not None and zero.shape != scale.shape:
        raise ShapeError(f"zero is {list(zero.shape)}; need {list(scale.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != channels):
        raise ShapeError(f"bias is {list(bias.shape)}; need [{channels}]")
