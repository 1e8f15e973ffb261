"""A linear layer whose weight is stored as int4, in groups with a scale and a zero point each."""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.checks import require_dtype, require_float, require_one_device
from kernels.dispatch import choose
from kernels.errors import ShapeError

GROUP_MULTIPLE = 16
CHANNELS_OF_BLOCK = 32
"""Channels that lie side by side in a packed weight."""
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
        zero: [N, G] uint8 or fp32; None: 8 everywhere. Codes less an fp32 zero point are rounded
            to bf16 or fp16 where tensor cores multiply them.
        bias: [N] bf16 | fp16 | fp32, added in fp32.
        packed: [ceil(N / 32), bytes] uint8, the same weight as `pack` lays it out for C++. With it,
            rows are rounded to 16-bit integers, as in `quant_linear`.

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
        require_dtype(zero, "zero", torch.uint8, torch.float32)
    if bias is not None:
        require_float(bias, "bias")
    require_one_device(x, weight_int4, scale, zero, bias, packed)
    _check_shapes(x, weight_int4, scale, zero, bias)
    if packed is not None:
        _check_packed(weight_int4, scale, zero, packed)
    result: Tensor = choose("int4_linear", x.device.type)(
        x, weight_int4, scale, zero, bias, packed=packed
    )
    return result


def pack(weight_int4: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Lay 32 channels side by side and what belongs to a group behind its codes.

    Each block of 32 channels holds for each group: codes [group / 8, 32, 4], inputs 8i to 8i + 3 in
    the low four bits and 8i + 4 to 8i + 7 in the high ones; 32 scales, fp32; 32 int32: the sum of
    the codes times 256, plus the zero point; and, where those are fp32, 32 zero points.
    """
    channels, groups = scale.shape
    group = 2 * weight_int4.shape[1] // groups
    blocks = -(-channels // CHANNELS_OF_BLOCK)
    codes = torch.stack((weight_int4 & 15, weight_int4 >> 4), dim=-1).view(channels, groups, group)
    if zero is None:
        zero = torch.full_like(scale, SYMMETRIC_ZERO, dtype=torch.uint8)
    codes, scale, zero = (
        functional.pad(t, (0, 0) * (t.dim() - 1) + (0, blocks * CHANNELS_OF_BLOCK - channels))
        for t in (codes, scale.float(), zero)
    )
    shape = (blocks, CHANNELS_OF_BLOCK, groups)
    eights = codes.view(*shape, group // 8, 2, 4).permute(0, 2, 3, 1, 4, 5)
    nibbles = (eights[..., 0, :] | eights[..., 1, :] << 4).reshape(blocks, groups, -1)
    sums = codes.sum(dim=-1, dtype=torch.int32) * 256
    own = (scale, sums, zero) if zero.is_floating_point() else (scale, sums + zero.int())
    tails = [t.view(shape).transpose(1, 2).contiguous().view(torch.uint8) for t in own]
    return torch.cat((nibbles, *tails), dim=-1).flatten(1)


def _check_packed(weight_int4: Tensor, scale: Tensor, zero: Tensor | None, packed: Tensor) -> None:
    require_dtype(packed, "packed", torch.uint8)
    (channels, groups), half = scale.shape, weight_int4.shape[1]
    tail = 12 if zero is not None and zero.is_floating_point() else 8
    wanted = [-(-channels // CHANNELS_OF_BLOCK), CHANNELS_OF_BLOCK * (half + tail * groups)]
    if list(packed.shape) != wanted or not packed.is_contiguous():
        raise ShapeError(f"packed is {list(packed.shape)}; need {wanted}, contiguous")


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
