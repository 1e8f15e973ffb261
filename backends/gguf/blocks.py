"""The numbers of quantised tensors in .gguf files, exactly as the format defines them.

A row is cut into blocks of 32 or 256 weights, each with its own scale; blocks of 256 have smaller
ones within, whose scales are themselves integers times one fp16. Every product and difference is
fp32 and in ggml's order, so the bits are those of its reference.

Source: ggml's `ggml-quants`, the structs of its blocks.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from backends.gguf.types import TYPES, TensorType

_FLOATS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WEIGHTS_AT_ONCE: Final = 2**20
"""So much is fp32 at a time while a tensor is read."""


class Groups(NamedTuple):
    """Blocks [B] as integers and what they are multiplied by: code * scale - offset."""

    codes: Tensor
    """[B, groups, inputs of a group] uint8 or int8."""
    scales: Tensor
    """[B, groups] fp32."""
    offsets: Tensor | None
    """[B, groups] fp32; None: 0."""


def plain(raw: Tensor, kind: TensorType) -> Tensor:
    """Return the numbers of a tensor whose type is a float's.

    Args:
        raw: [rows, bytes] uint8, contiguous.
    """
    return raw.view(_FLOATS[kind.name])


def is_plain(kind: TensorType) -> bool:
    """Whether a tensor's numbers are floats as they stand."""
    return kind.name in _FLOATS


def dequantise(raw: Tensor, kind: TensorType, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weight that blocks stand for.

    Args:
        raw: [rows, bytes] uint8, contiguous.
        dtype: Of the result: fp32 is exact.

    Returns:
        [rows, K].
    """
    if is_plain(kind):
        return plain(raw, kind).to(dtype)
    rows, inputs = raw.shape[0], raw.shape[1] // kind.nbytes * kind.elements
    out = torch.empty(rows, inputs, dtype=dtype)
    step = max(1, _WEIGHTS_AT_ONCE // inputs)
    for first in range(0, rows, step):
        found = groups(raw[first : first + step], kind)
        values = found.codes.float().mul_(found.scales.unsqueeze(-1))
        if found.offsets is not None:
            values -= found.offsets.unsqueeze(-1)
        out[first : first + step] = values.view(-1, inputs)
    return out


def groups(raw: Tensor, kind: TensorType) -> Groups:
    """Take the blocks of rows [rows, bytes] apart; B is rows times the blocks of a row."""
    return _READERS[kind.name](raw.reshape(-1, kind.nbytes))


def _half(blocks: Tensor, at: int) -> Tensor:
    """The fp16 at a byte of each block: [B, 1] fp32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(packed: Tensor, width: int, bits: int) -> Tensor:
    """Codes of so many bits: of each `width` bytes first their lowest bits, then the next."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    split = packed.reshape(-1, packed.shape[1] // width, 1, width)
    return torch.bitwise_and(split >> shifts, 2**bits - 1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """Bit i of four bytes is the fifth bit of code i: [B, 32], 0 or 16."""
    bits = blocks[:, at : at + 4, None] >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.reshape(-1, 32) << 4


def _q4_0(b: Tensor) -> Groups:
    codes = _fields(b[:, 2:], 16, 4).view(-1, 1, 32).view(torch.int8) - 8
    return Groups(codes, _half(b, 0), None)


def _q4_1(b: Tensor) -> Groups:
    return Groups(_fields(b[:, 4:], 16, 4).view(-1, 1, 32), _half(b, 0), -_half(b, 2))


def _q5_0(b: Tensor) -> Groups:
    codes = _fields(b[:, 6:], 16, 4).view(-1, 32) | _fifth_bits(b, 2)
    return Groups((codes.view(torch.int8) - 16).unsqueeze(1), _half(b, 0), None)


def _q5_1(b: Tensor) -> Groups:
    codes = _fields(b[:, 8:], 16, 4).view(-1, 32) | _fifth_bits(b, 4)
    return Groups(codes.unsqueeze(1), _half(b, 0), -_half(b, 2))


def _q8_0(b: Tensor) -> Groups:
    return Groups(b[:, 2:].contiguous().view(torch.int8).unsqueeze(1), _half(b, 0), None)


def _q2_k(b: Tensor) -> Groups:
    codes = _fields(b[:, 16:80], 32, 2).view(-1, 16, 16)
    return Groups(codes, _half(b, 80) * (b[:, :16] & 15), _half(b, 82) * (b[:, :16] >> 4))


def _q3_k(b: Tensor) -> Groups:
    low = _fields(b[:, 32:96], 32, 2).reshape(-1, 256)
    # A bit that is not set takes four away.
    high = (_fields(b[:, :32], 32, 1).reshape(-1, 256) ^ 1) << 2
    codes = low.view(torch.int8) - high.view(torch.int8)
    fours = _fields(b[:, 96:104], 8, 4).reshape(-1, 16)
    twos = _fields(b[:, 104:108], 4, 2).reshape(-1, 16)
    scales = (fours | twos << 4).view(torch.int8) - 32
    return Groups(codes.view(-1, 16, 16), _half(b, 108) * scales, None)


def _six_bit_pairs(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets [B, 8] fp32 of a block of 256 in eight groups: 6 bits each, after two
    fp16 that multiply them."""
    low, middle, high = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat((low & 63, high & 15 | low >> 2 & 48), dim=1)
    offsets = torch.cat((middle & 63, high >> 4 | middle >> 2 & 48), dim=1)
    return _half(b, 0) * scales, _half(b, 2) * offsets


def _q4_k(b: Tensor) -> Groups:
    return Groups(_fields(b[:, 16:], 32, 4).view(-1, 8, 32), *_six_bit_pairs(b))


def _q5_k(b: Tensor) -> Groups:
    low = _fields(b[:, 48:], 32, 4).view(-1, 8, 32)
    high = _fields(b[:, 16:48], 32, 1).view(-1, 8, 32)
    return Groups(low | high << 4, *_six_bit_pairs(b))


def _q6_k(b: Tensor) -> Groups:
    low = _fields(b[:, :128], 64, 4).reshape(-1, 256)
    high = _fields(b[:, 128:192], 32, 2).reshape(-1, 256)
    codes = (low | high << 4).view(torch.int8) - 32
    scales = b[:, 192:208].contiguous().view(torch.int8)
    return Groups(codes.view(-1, 16, 16), _half(b, 208) * scales, None)


_READERS: Final[dict[str, Callable[[Tensor], Groups]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
assert _READERS.keys() | _FLOATS.keys() == {kind.name for kind in TYPES.values()}
