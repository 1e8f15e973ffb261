"""The gate of a SwiGLU feed-forward block."""

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
    require_float(gate_up, "gate_up")
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ShapeError(f"gate_up is {list(gate_up.shape)}; its last dimension must be even")
    result: Tensor = choose("silu_mul", gate_up.device.type)(gate_up)
    return result
