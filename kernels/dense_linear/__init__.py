"""A plain linear layer whose row's result does not depend on the rows beside it, on a GPU."""

from torch import Tensor

from kernels.checks import require_float, require_one_device
from kernels.dispatch import choose
from kernels.errors import ShapeError


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transpose of a plain weight.

    torch's own product is faster, but another one for every number of rows; this is for those who
    promised batch invariance (see `kernels.invariance`). On a CPU `packed_linear` does the same.

    Args:
        x: [..., K] bf16 | fp16 | fp32.
        weight: [N, K], x.dtype, contiguous.
        bias: [N] bf16 | fp16 | fp32, added in fp32.

    Returns:
        [..., N], x.dtype, accumulated in fp32.

    Raises:
        ShapeError: sizes disagree.
        DTypeError: a tensor has another dtype than given above.

    Source: He et al. 2025, "Defeating Nondeterminism in LLM Inference" (Thinking Machines).
    """
    require_float(x, "x")
    require_float(weight, "weight", like=x.dtype)
    if bias is not None:
        require_float(bias, "bias")
    require_one_device(x, weight, bias)
    if weight.dim() != 2 or x.dim() == 0 or weight.shape[1] != x.shape[-1]:
        raise ShapeError(
            f"weight is {list(weight.shape)} but x is {list(x.shape)}; need [N, K] and [..., K]"
        )
    if not weight.is_contiguous():
        raise ShapeError("weight must be contiguous")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"bias is {list(bias.shape)}; need [{weight.shape[0]}]")
    result: Tensor = choose("dense_linear", x.device.type)(x, weight, bias)
    return result
