"""How checkpoints write quantised linear layers, and what is read out of them.

=====================  =====================================================================
layout                 tensors of a layer with N outputs, K inputs and G groups
=====================  =====================================================================
compressed-tensors     `weight` int8 or fp8 [N, K], `weight_scale` [N, 1] or [1]; int4, and
                       int8 that is packed: `weight_packed` int32 [N, K/8] (K/4 of 8 bits),
                       `weight_scale` [N, G], `weight_shape`, and, unless symmetric,
                       `weight_zero_point` [N/8, G] (N/4)
gptq                   `qweight` int32 [K/8, N] (K/4 of 8 bits), `qzeros` [G, N/8] (N/4),
                       `scales` [G, N], `g_idx`
awq                    `qweight` int32 [K, N/8], `qzeros` [G, N/8], `scales` [G, N]; the eight
                       channels of a word in an order of their own
=====================  =====================================================================

Sources: compressed-tensors' pack-quantized compressor; GPTQModel's checkpoint formats "gptq" (zero
points less one) and "gptq_v2"; AutoAWQ's gemm packing.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from backends.errors import ModelLoadError
from backends.quantization.codes import Codes, Fp8Codes, GroupCodes, Int8Codes
from backends.quantization.int4 import pack_nibbles
from backends.quantization.schemes import StoredQuantization

Take = Callable[[str, tuple[int, ...]], Tensor]
"""Reads the tensor of that name, which must have that shape."""

_AWQ_ORDER: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which four bits of a word hold channels 0 to 7."""


def read(stored: StoredQuantization, take: Take, name: str, channels: int, inputs: int) -> Codes:
    """Read one layer.

    Raises:
        ModelLoadError: a tensor is missing, has another shape or another dtype.
    """
    groups = inputs // (stored.group_size or inputs)
    bits = 4 if stored.scheme == "int4" else 8
    if stored.layout == "gptq":
        return _gptq(take, name, channels, inputs, groups, bits, stored.zero_offset)
    if stored.layout == "awq":
        return _awq(take, name, channels, inputs, groups)
    if stored.packed:
        return _packed(take, name, channels, inputs, groups, bits, stored.symmetric)
    codes = take(f"{name}.weight", (channels, inputs))
    wanted = torch.float8_e4m3fn if stored.scheme == "fp8" else torch.int8
    if codes.dtype != wanted:
        raise ModelLoadError(
            f"'{name}.weight' is {codes.dtype}, but config.json says the weights are {wanted}"
        )
    shape = (1,) if stored.per_tensor else (channels, 1)
    scales = take(f"{name}.weight_scale", shape).float().reshape(-1).expand(channels).contiguous()
    if stored.scheme == "fp8":
        return Fp8Codes(codes, scales)
    return Int8Codes(codes, scales, stored.scheme == "w8a8")


def _packed(
    take: Take, name: str, channels: int, inputs: int, groups: int, bits: int, symmetric: bool
) -> GroupCodes:
    of_word = 32 // bits
    words = take(f"{name}.weight_packed", (channels, inputs // of_word))
    scales = take(f"{name}.weight_scale", (channels, groups)).float()
    take(f"{name}.weight_shape", (2,))
    zeros = None
    if not symmetric:
        stored = take(f"{name}.weight_zero_point", (-(-channels // of_word), groups))
        zeros = _unpack(stored.t(), bits).t()[:channels].contiguous()
    codes = words.contiguous().view(torch.uint8)
    return GroupCodes(codes, scales, zeros) if bits == 4 else _signed(codes, scales, zeros)


def _gptq(
    take: Take, name: str, channels: int, inputs: int, groups: int, bits: int, zero_offset: int
) -> GroupCodes:
    of_word = 32 // bits
    codes = _unpack(take(f"{name}.qweight", (inputs // of_word, channels)).t(), bits)
    zeros = _unpack(take(f"{name}.qzeros", (groups, channels // of_word)), bits).t()
    scales = take(f"{name}.scales", (groups, channels)).t().float().contiguous()
    order = take(f"{name}.g_idx", (inputs,))
    if not torch.equal(order.long(), torch.arange(inputs) // (inputs // groups)):
        raise ModelLoadError(
            f"'{name}.g_idx' scatters the groups (desc_act); we serve GPTQ without it"
        )
    if bits == 4:
        return GroupCodes(pack_nibbles(codes), scales, (zeros + zero_offset).contiguous())
    return _signed(codes, scales, zeros.short() + zero_offset)


def _signed(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> GroupCodes:
    """Codes of 0 to 255 about zero points near 128 as codes of -128 to 127 about 0."""
    middle = 128
    offsets = None if zeros is None else zeros.float() - middle
    if offsets is not None and not offsets.any():
        offsets = None
    about_zero = codes.bitwise_xor(middle).view(torch.int8)
    return GroupCodes(about_zero, scales, None if offsets is None else offsets.contiguous())


def _awq(take: Take, name: str, channels: int, inputs: int, groups: int) -> GroupCodes:
    codes = _unpack(take(f"{name}.qweight", (inputs, channels // 8)), 4, _AWQ_ORDER).t()
    zeros = _unpack(take(f"{name}.qzeros", (groups, channels // 8)), 4, _AWQ_ORDER).t()
    scales = take(f"{name}.scales", (groups, channels)).t().float()
    return GroupCodes(pack_nibbles(codes), scales.contiguous(), zeros.contiguous())


def _unpack(words: Tensor, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """[R, C] int32 of several codes each -> [R, C * codes of a word] uint8.

    Args:
        order: code j of a word lies at `bits * order[j]`; None: in order.
    """
    places = order or range(32 // bits)
    codes = [(words >> bits * place & 2**bits - 1).to(torch.uint8) for place in places]
    return torch.stack(codes, dim=-1).flatten(1)


def as_compressed_tensors(name: str, weight: Codes) -> dict[str, Tensor]:
    """The tensors of one layer, as `read` reads them back; int4 scales in fp16."""
    if not isinstance(weight, GroupCodes):
        return {f"{name}.weight": weight.codes, f"{name}.weight_scale": weight.scales[:, None]}
    channels, half = weight.codes.shape
    stored = {
        f"{name}.weight_packed": weight.codes.view(torch.int32),
        f"{name}.weight_scale": weight.scales.half(),
        f"{name}.weight_shape": torch.tensor([channels, 2 * half]),
    }
    if weight.zeros is not None:
        padded = functional.pad(weight.zeros.t(), (0, -channels % 8)).contiguous()
        words = pack_nibbles(padded).contiguous().view(torch.int32)
        stored[f"{name}.weight_zero_point"] = words.t().contiguous()
    return stored
