"""A linear layer that multiplies 8-bit activations by 8-bit weights."""

import torch
from torch import Tensor

from kernels.checks import CODE_DTYPES, require_dtype, require_float, require_one_device
from kernels.dispatch import choose
from kernels.errors import ShapeError


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Round each row of x to the weight's 8-bit dtype, then multiply by its transpose.

    A row's scale is its largest value / 127 (int8) or / 448 (fp8), of a row of zeros 1; codes are
    rounded half to even. Products of int8 add up exactly, those of fp8 in fp32.

    Args:
        x: [..., K] bf16 | fp16 | fp32.
        weight: [N, K] int8 | fp8 e4m3, contiguous. The weight is weight * scale[:, None].
        scale: [N] fp32.
        bias: [N] bf16 | fp16 | fp32, added in fp32.

    Returns:
        [..., N], x.dtype.

    Raises:
        ShapeError: sizes disagree.
        DTypeError: a tensor has another dtype than given above.
        KernelUnavailableError: fp8 on a GPU older than Ada.

    Source: Xiao et al. 2023, "SmoothQuant", §3 (per-token activations, per-channel weights).
    """
    require_float(x, "x")
    if weight.dtype not in CODE_DTYPES:
        require_dtype(weight, "weight", torch.int8, torch.float8_e4m3fn)
    require_dtype(scale, "scale", torch.float32)
    if bias is not None:
        require_float(bias, "bias")
    require_one_device(x, weight, scale, bias)
    if weight.dim() != 2 or x.dim() == 0 or weight.shape[1] != x.shape[-1]:
        raise ShapeError(
            f"weight is {list(weight.shape)} but x is {list(x.shape)}; need [N, K] and [..., K]"
        )
    if not weight.is_contiguous():
        raise ShapeError("weight must be contiguous")
    for name, values in (("scale", scale), ("bias", bias)):
        if values is not None and values.shape != weight.shape[:1]:
            raise ShapeError(f"{name} is {list(values.shape)}; need [{weight.shape[0]}]")
    result: Tensor = choose("scaled_linear", x.device.type)(x, weight, scale, bias)
    return result
