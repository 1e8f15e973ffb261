"""Linear layers whose weight is kept in groups or as fp8, and the choice of a layer for codes."""

import torch
from torch import Tensor

from backends.layers.linear import AnyLinear, Int8Linear, Linear
from backends.quantization.codes import Codes, Fp8Codes, GroupCodes, Int8Codes, dequantise
from backends.quantization.schemes import Scheme
from kernels.decoder import PackedWeight
from kernels.dispatch import implementation_for
from kernels.group_quant_linear import codes_of_byte, group_quant_linear, pack, unpack
from kernels.scaled_linear import scaled_linear

_FP8_CAPABILITY = (8, 9)


class GroupQuantLinear:
    """A weight of 4 or 8 bits in groups; activations stay as they are."""

    def __init__(self, weight: GroupCodes, bias: Tensor | None) -> None:
        """Keep a weight, in the form that is fastest where it lies, and bias [out]."""
        self._given = GroupCodes(
            weight.codes.contiguous(), weight.scales.contiguous(), weight.zeros
        )
        self.bias = bias
        self.channels, self.groups = weight.scales.shape
        self.num_weights = codes_of_byte(weight.codes) * weight.codes.numel()
        self.nbytes = sum(part.nbytes for part in self._given if part is not None)
        self.packed: Tensor | None = None
        if weight.codes.device.type == "cpu" and implementation_for("cpu") == "native":
            self.packed = pack(*self._given)
            self._given = self._given.on(torch.device("meta"))

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        return group_quant_linear(x, *self._given, self.bias, packed=self.packed)

    @property
    def bits(self) -> int:
        """Of a code."""
        return 8 // codes_of_byte(self._given.codes)

    @property
    def weight(self) -> GroupCodes:
        """What the layer was made of."""
        if self.packed is None:
            return self._given
        inputs, floats = self.num_weights // self.channels, self._has_float_zeros
        parts = unpack(
            self.packed, self.channels, inputs, inputs // self.groups, float_zeros=floats
        )
        return GroupCodes(*parts)

    @property
    def packed_weight(self) -> PackedWeight | None:
        """The layer as the decoder in one call takes it; None where there is no packed form."""
        if self.packed is None or not (self.bias is None or self.bias.dtype == torch.float32):
            return None
        inputs = self.num_weights // self.channels
        group, floats = inputs // self.groups, self._has_float_zeros
        return PackedWeight(self.packed, None, self.bias, self.channels, inputs, group, floats)

    @property
    def _has_float_zeros(self) -> bool:
        return self._given.zeros is not None and self._given.zeros.is_floating_point()


class ScaledLinear:
    """An int8 or fp8 weight; each row of activations is rounded to the same dtype."""

    packed_weight = None

    def __init__(self, weight: Int8Codes | Fp8Codes, bias: Tensor | None) -> None:
        self.codes = weight.codes.contiguous()
        self.scales = weight.scales.contiguous()
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        return scaled_linear(x, self.codes, self.scales, self.bias)

    @property
    def nbytes(self) -> int:
        """Bytes read to apply the layer once."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def num_weights(self) -> int:
        """Entries of the weight."""
        return self.codes.numel()


def coded_linear(weight: Codes, bias: Tensor | None, *, dtype: torch.dtype) -> AnyLinear:
    """Make the layer that is fastest where the codes lie.

    Rounding activations to 8 bits pays where tensor cores multiply 8 bits. On a CPU int8 weights
    meet 16-bit activations, which are nearer to the original; fp8 weights, which no instruction
    reads there, become plain ones.
    """
    if isinstance(weight, GroupCodes):
        return GroupQuantLinear(weight, bias)
    if isinstance(weight, Int8Codes):
        if weight.rounds_activations and weight.codes.device.type == "cuda":
            return ScaledLinear(weight, bias)
        return Int8Linear(weight.codes, weight.scales, bias, dtype=dtype)
    device = weight.codes.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY:
        return ScaledLinear(weight, bias)
    return Linear(dequantise(weight), bias, dtype=dtype)


def kept_as(layer: AnyLinear) -> Scheme | None:
    """Name what a layer's weight is kept as; None: plain floats."""
    if isinstance(layer, GroupQuantLinear):
        return "int4" if layer.bits == 4 else "int8"
    if isinstance(layer, Int8Linear):
        return "int8"
    if isinstance(layer, ScaledLinear):
        return "w8a8" if layer.codes.dtype == torch.int8 else "fp8"
    return None
