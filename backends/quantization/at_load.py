"""Rounding plain weights while they are loaded, or once and for all by `headgate quantize`."""

from torch import Tensor

from backends.quantization.codes import Codes, Int8Codes
from backends.quantization.fp8 import quantize_fp8
from backends.quantization.int4 import group_size, quantize_int4
from backends.quantization.int8 import quantize_int8
from backends.quantization.schemes import QuantizeAtLoad


def quantize(weight: Tensor, scheme: QuantizeAtLoad, group: int | None = None) -> Codes:
    """Round a weight [N, K].

    Args:
        group: int4: inputs of a group at most. A layer whose inputs no group divides gets int8.
    """
    if scheme == "fp8":
        return quantize_fp8(weight)
    size = group_size(weight.shape[1], group) if scheme == "int4" else None
    return Int8Codes(*quantize_int8(weight)) if size is None else quantize_int4(weight, size)
