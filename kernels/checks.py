"""Input checks the ops share. They read only sizes and dtypes, so they never wait for a GPU."""

import torch
from torch import Tensor

from kernels.errors import DTypeError

FLOAT_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
INDEX_DTYPES = frozenset({torch.int32, torch.int64})


def require_float(tensor: Tensor, name: str, like: torch.dtype | None = None) -> None:
    """Refuse anything but fp32, fp16 and bf16, or but `like` where it is given."""
    if tensor.dtype not in FLOAT_DTYPES or (like is not None and tensor.dtype != like):
        wanted = like or "float32, float16 or bfloat16"
        raise DTypeError(f"{name} is {tensor.dtype}; it must be {wanted}")


def require_dtype(tensor: Tensor, name: str, *allowed: torch.dtype) -> None:
    """Refuse any dtype that is not in `allowed`."""
    if tensor.dtype not in allowed:
        wanted = " or ".join(str(dtype) for dtype in allowed)
        raise DTypeError(f"{name} is {tensor.dtype}; it must be {wanted}")
