"""Arrays travel to a device together, and arrive as they were."""

import numpy as np
import pytest
import torch

from backends.transfer import to_device

ARRAYS = (
    np.arange(9, dtype=np.int64).reshape(3, 3),
    np.array([[1, -1], [7, 5]], dtype=np.int32)[:, ::-1],
    np.zeros(0, dtype=np.int64),
    np.array([0.5, -2.0, 1e30], dtype=np.float32),
    np.array(7, dtype=np.int32),
)
DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_arrays_arrive_with_their_values_shapes_and_dtypes(device: torch.device) -> None:
    """Strided and empty ones too."""
    moved = to_device([array.copy() for array in ARRAYS], device)
    for tensor, array in zip(moved, ARRAYS, strict=True):
        assert tensor.device.type == device.type
        assert tensor.shape == array.shape
        assert np.array_equal(tensor.cpu().numpy(), array)


def test_arrays_for_another_device_share_one_aligned_buffer() -> None:
    """One copy: every tensor is a view of the same memory, at a place kernels can read widely."""
    tensors = to_device(ARRAYS, torch.device("meta"))
    assert len({tensor.untyped_storage()._cdata for tensor in tensors}) == 1
    assert [list(tensor.shape) for tensor in tensors] == [list(array.shape) for array in ARRAYS]
    assert all(tensor.storage_offset() * tensor.itemsize % 16 == 0 for tensor in tensors)
    assert [tensor.dtype for tensor in tensors[:4]] == [
        torch.int64,
        torch.int32,
        torch.int64,
        torch.float32,
    ]
