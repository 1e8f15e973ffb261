"""Multiply in fp32, round once."""

from torch import Tensor


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = x.float() @ weight.float().t()
    if bias is not None:
        result = result + bias.float()
    return result.to(x.dtype)
