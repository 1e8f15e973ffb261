"""The gate of a feed-forward block: SwiGLU's, or GeGLU's as Gemma has it."""

from torch import Tensor

from kernels.checks import require_float
from kernels.dispatch import choose
from kernels.errors import ShapeError


def silu_mul(gate_up: Tensor) -> Tensor:
    """Multiply SiLU of the first half of each row by its second half.

    Args:
        gate_up: [..., 2F] bf16 | fp16 | fp32. Gate projection, then up projection.

    Returns:
        [..., F], gate_up.dtype, computed in fp32 and rounded once.

    Raises:
        ShapeError: the last dimension is odd.
        DTypeError: `gate_up` is not a float tensor.

    Source: Shazeer 2020, "GLU Variants Improve Transformer".
    """
    return _apply("silu_mul", gate_up)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """Multiply GELU of the first half of each row, in its form with tanh, by its second half.

    As `silu_mul` beside.

    Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units".
    """
    return _apply("gelu_mul", gate_up)


def _apply(op: str, gate_up: Tensor) -> Tensor:
    require_float(gate_up, "gate_up")
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ShapeError(f"gate_up is {list(gate_up.shape)}; its last dimension must be even")
    result: Tensor = choose(op, gate_up.device.type)(gate_up)
    return result
