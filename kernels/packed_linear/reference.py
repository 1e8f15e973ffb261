"""Unpack, multiply, add the bias."""

from torch import Tensor

from kernels.packed_linear import unpack


def packed_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None = None, *, channels: int
) -> Tensor:
    result = x @ unpack(packed, channels, x.shape[-1]).float().t()
    return result if bias is None else result + bias.float()
