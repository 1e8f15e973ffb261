"""Arrays from host to device in one copy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.generic]

_ALIGNMENT = 16
"""Bytes; what kernels hope for of a pointer."""


def to_device(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """Return the arrays as tensors on a device; nothing waits for the copy.

    On the CPU they share the arrays' memory. Elsewhere they are views of one buffer, which was
    filled in pinned memory and copied in one go: a copy costs more to start than to make.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    offsets = [0]
    for array in arrays:
        offsets.append(offsets[-1] + -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT)
    # The allocator of pinned memory gives it to nobody else before the copy is made.
    host = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for array, offset in zip(arrays, offsets, strict=False):
        host[offset : offset + array.nbytes].numpy()[:] = _bytes(array)
    whole = host.to(device, non_blocking=True)
    return [
        whole[offset : offset + array.nbytes].view(_dtype(array)).view(array.shape)
        for array, offset in zip(arrays, offsets, strict=False)
    ]


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _dtype(array: Array) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
