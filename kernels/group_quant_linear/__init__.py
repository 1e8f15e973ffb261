"""A linear layer whose weight is stored as codes of 4 or 8 bits, in groups with a scale each."""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.checks import require_dtype, require_float, require_one_device, require_read_packed
from kernels.dispatch import choose
from kernels.errors import ShapeError

GROUP_MULTIPLE = 16
MOST_GROUP = 1 << 16
"""Inputs of a group; beyond, a sum of products of bytes might pass 32 bits."""
CHANNELS_OF_BLOCK = 32
"""Channels that lie side by side in a packed weight."""
SYMMETRIC_ZERO = {torch.uint8: 8, torch.int8: 0}
"""The zero point of weights that are stored without one, by the dtype of their codes."""


def group_quant_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    """Multiply by the transpose of a weight of 4 or 8 bits, one scale and zero point per group.

    A group is `K // G` inputs of one output channel, a multiple of 16, at most 65,536.

    Args:
        x: [..., K] bf16 | fp16 | fp32.
        codes: contiguous; the dtype says how wide a code is. [N, K // 2] uint8: 4 bits, 0..15; the
            code of input 2j lies in the low four bits of byte j, that of 2j + 1 in the high ones.
            [N, K] int8: 8 bits, -128..127.
        scale: [N, G] bf16 | fp16 | fp32. The weight is (code - zero) * scale of its group.
        zero: [N, G] fp32, or uint8 of 0..15 beside codes of 4 bits; None: 8 everywhere for 4 bits,
            0 for 8. Codes less an fp32 zero point are rounded to bf16 or fp16 where tensor cores
            multiply them.
        bias: [N] bf16 | fp16 | fp32, added in fp32.
        packed: [ceil(N / 32), bytes], codes.dtype, the same weight as `pack` lays it out for C++.
            With it, rows are rounded to 16-bit integers, as in `quant_linear`, and C++ reads
            nothing else of the weight: codes, scale and zero may then lie on the meta device.

    Returns:
        [..., N], x.dtype, accumulated in fp32.

    Raises:
        ShapeError: sizes disagree, or the groups are no multiple of 16.
        DTypeError: a tensor has another dtype than given above.

    Source: Frantar et al. 2023, "GPTQ"; the order of 4-bit codes is compressed-tensors'
    "pack-quantized".
    """
    require_float(x, "x")
    require_dtype(codes, "codes", torch.uint8, torch.int8)
    require_float(scale, "scale")
    if zero is not None:
        integers = (torch.uint8,) if codes.dtype == torch.uint8 else ()
        require_dtype(zero, "zero", *integers, torch.float32)
    if bias is not None:
        require_float(bias, "bias")
    require_read_packed(codes, packed, x)
    require_one_device(x, bias, packed, *(() if codes.is_meta else (codes, scale, zero)))
    _check_shapes(x, codes, scale, zero, bias)
    if packed is not None:
        _check_packed(codes, scale, zero, packed)
    result: Tensor = choose("group_quant_linear", x.device.type)(
        x, codes, scale, zero, bias, packed=packed
    )
    return result


def codes_of_byte(codes: Tensor) -> int:
    """How many codes lie in a byte: 2 of 4 bits, 1 of 8."""
    return 2 if codes.dtype == torch.uint8 else 1


def pack(codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Lay 32 channels side by side and what belongs to a group behind its codes.

    Each block of 32 channels holds for each group: its codes; 32 scales, fp32; 32 int32: the sum of
    the codes times 256, plus the zero point where that is an integer; and, where those are fp32, 32
    zero points. Codes of 8 bits are [group / 4, 32, 4]; of 4 bits [group / 8, 32, 4], inputs 8i to
    8i + 3 in the low four bits and 8i + 4 to 8i + 7 in the high ones.
    """
    channels, groups = scale.shape
    blocks = -(-channels // CHANNELS_OF_BLOCK)
    values = codes
    if codes.dtype == torch.uint8:
        values = torch.stack((codes & 15, codes >> 4), dim=-1)
    values = values.reshape(channels, groups, -1)
    if zero is None:
        zero = torch.full_like(scale, SYMMETRIC_ZERO[codes.dtype], dtype=torch.uint8)
    values, scale, zero = (
        functional.pad(t, (0, 0) * (t.dim() - 1) + (0, blocks * CHANNELS_OF_BLOCK - channels))
        for t in (values, scale.float(), zero)
    )
    shape = (blocks, CHANNELS_OF_BLOCK, groups)
    fours = values.view(*shape, -1, 4).permute(0, 2, 3, 1, 4)
    if codes.dtype == torch.uint8:
        fours = fours[:, :, ::2] | fours[:, :, 1::2] << 4
    sums = values.sum(dim=-1, dtype=torch.int32) * 256
    own = (scale, sums, zero) if zero.is_floating_point() else (scale, sums + zero.int())
    tails = [t.view(shape).transpose(1, 2).contiguous().view(codes.dtype) for t in own]
    return torch.cat((fours.reshape(blocks, groups, -1), *tails), dim=-1).flatten(1)


def unpack(
    packed: Tensor, channels: int, inputs: int, group: int, *, float_zeros: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The codes, scales and zero points that `pack` was given; None where 8-bit codes have none."""
    wide = packed.dtype == torch.int8
    blocks, groups, tail = len(packed), inputs // group, 12 if float_zeros else 8
    own = packed.view(blocks, groups, -1)
    codes_end = own.shape[2] - CHANNELS_OF_BLOCK * tail
    fours = own[:, :, :codes_end].view(blocks, groups, -1, CHANNELS_OF_BLOCK, 4)
    if wide:
        values = fours.permute(0, 3, 1, 2, 4)
    else:
        eights = torch.stack((fours & 15, fours >> 4), dim=4)
        values = eights.permute(0, 3, 1, 2, 4, 5)
    codes = values.reshape(blocks * CHANNELS_OF_BLOCK, inputs)[:channels]
    if not wide:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    tails = own[:, :, codes_end:].contiguous().view(torch.float32)
    scale, sums, *zeros = (
        part.transpose(1, 2).reshape(-1, groups)[:channels]
        for part in tails.view(blocks, groups, -1, CHANNELS_OF_BLOCK).unbind(2)
    )
    if zeros:
        return codes, scale, zeros[0]
    return codes, scale, None if wide else (sums.view(torch.int32) & 255).to(torch.uint8)


def _check_packed(codes: Tensor, scale: Tensor, zero: Tensor | None, packed: Tensor) -> None:
    require_dtype(packed, "packed", codes.dtype)
    (channels, groups), row_bytes = scale.shape, codes.shape[1]
    tail = 12 if zero is not None and zero.is_floating_point() else 8
    wanted = [-(-channels // CHANNELS_OF_BLOCK), CHANNELS_OF_BLOCK * (row_bytes + tail * groups)]
    if list(packed.shape) != wanted or not packed.is_contiguous():
        raise ShapeError(f"packed is {list(packed.shape)}; need {wanted}, contiguous")


def _check_shapes(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None
) -> None:
    per_byte = codes_of_byte(codes)
    if codes.dim() != 2 or x.dim() == 0 or per_byte * codes.shape[1] != x.shape[-1]:
        raise ShapeError(
            f"codes are {list(codes.shape)} {codes.dtype} but x is {list(x.shape)}; "
            f"need [N, {'K / 2' if per_byte == 2 else 'K'}] and [..., K]"
        )
    channels, inputs = codes.shape[0], x.shape[-1]
    if scale.dim() != 2 or scale.shape[0] != channels or not scale.shape[1]:
        raise ShapeError(f"scale is {list(scale.shape)}; need [{channels}, G]")
    groups = scale.shape[1]
    size = inputs // groups
    if inputs % groups or size % GROUP_MULTIPLE or size > MOST_GROUP:
        raise ShapeError(
            f"{groups} groups of {inputs} inputs; a group must be a multiple of {GROUP_MULTIPLE}, "
            f"at most {MOST_GROUP:,}"
        )
    if zero is not None and zero.shape != scale.shape:
        raise ShapeError(f"zero is {list(zero.shape)}; need {list(scale.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != channels):
        raise ShapeError(f"bias is {list(bias.shape)}; need [{channels}]")
