"""Root-mean-square normalisation, alone or fused with the residual addition before it."""

from torch import Tensor

from kernels.checks import require_float, require_one_device
from kernels.dispatch import choose
from kernels.errors import ShapeError


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Scale each row to unit root mean square, then by `weight`.

    Args:
        x: [..., H] bf16 | fp16 | fp32.
        weight: [H], any of these dtypes.
        eps: added to the mean square.

    Returns:
        [..., H], x.dtype, computed in fp32 and rounded once.

    Raises:
        ShapeError: `weight` is not [H].
        DTypeError: `x` is not a float tensor.

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    _check(x, weight)
    result: Tensor = choose("rms_norm", x.device.type)(x, weight, eps=eps)
    return result


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Add `x` to the residual stream and normalise the sum.

    Args:
        x: [..., H] bf16 | fp16 | fp32. A block's output.
        residual: [..., H], x.dtype. The stream it is added to; not written.
        weight: [H], any of these dtypes.
        eps: added to the mean square.

    Returns:
        normed: [..., H], x.dtype: `rms_norm` of the new residual as it is returned.
        new_residual: [..., H], x.dtype: x + residual.

    Raises:
        ShapeError: `residual` is not shaped as `x`, or `weight` is not [H].
        DTypeError: `x` is not a float tensor, or `residual` has another dtype.
    """
    _check(x, weight)
    if residual.shape != x.shape:
        raise ShapeError(f"residual is {list(residual.shape)} but x is {list(x.shape)}")
    if residual.dtype != x.dtype:
        require_float(residual, "residual", like=x.dtype)
    result: tuple[Tensor, Tensor] = choose("add_rms_norm", x.device.type)(
        x, residual, weight, eps=eps
    )
    return result


def _check(x: Tensor, weight: Tensor) -> None:
    require_float(x, "x")
    require_one_device(x, weight)
    if weight.dim() != 1 or x.dim() == 0 or weight.shape[0] != x.shape[-1]:
        raise ShapeError(f"weight is {list(weight.shape)} but x is {list(x.shape)}: need [H]")
