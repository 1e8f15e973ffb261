"""Input checks the ops share. They read only sizes and dtypes, so they never wait for a GPU."""

import torch
from torch import Tensor

from kernels.dispatch import implementation_for
from kernels.errors import DeviceError, DTypeError, KernelUnavailableError, ShapeError

FLOAT_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
CODE_DTYPES = frozenset({torch.int8, torch.float8_e4m3fn})
"""8-bit codes; each group of them has an fp32 scale beside it."""
LARGEST_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""-128 stays unused, so that the codes are symmetric."""
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


def require_one_device(first: Tensor, *others: Tensor | None) -> None:
    """Refuse tensors that do not all lie where the first lies."""
    device = first.device
    for other in others:
        if other is not None and other.device != device:
            raise DeviceError(f"one tensor is on {device}, another on {other.device}; move it")


def require_read_packed(codes: Tensor, packed: Tensor | None, x: Tensor) -> None:
    """Refuse codes that were given up (meta) unless C++ will read the packed weight instead."""
    if codes.is_meta and (packed is None or implementation_for(x.device.type) != "native"):
        raise KernelUnavailableError(
            "the weight's codes were given up for a packed form, which only C++ reads; "
            "load the model again"
        )


def require_scales(cache: Tensor, scales: Tensor | None, name: str) -> None:
    """Refuse a KV cache [N, B, Hkv, D] of codes without scales [N, B, Hkv], and the reverse."""
    if scales is None:
        if cache.dtype in CODE_DTYPES:
            raise DTypeError(f"the cache is {cache.dtype}; its codes mean nothing without {name}")
        return
    if cache.dtype not in CODE_DTYPES:
        raise DTypeError(f"the cache is {cache.dtype}; {name} belongs to int8 or float8_e4m3fn")
    require_dtype(scales, name, torch.float32)
    if scales.shape != cache.shape[:3] or not scales.is_contiguous():
        raise ShapeError(
            f"{name} is {list(scales.shape)}; need {list(cache.shape[:3])}, contiguous"
        )
