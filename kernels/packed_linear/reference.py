"""Unpack, multiply, add the bias."""

from torch import Tensor


def packed_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None = None, *, channels: int
) -> Tensor:
    weight = packed.transpose(1, 2).reshape(-1, packed.shape[1])[:channels].float()
    result = x @ weight.t()
    return result if bias is None else result + bias.float()
