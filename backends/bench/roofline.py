"""What the machine could do at best: memory and arithmetic rates measured here, and the share used.

A decode step reads every weight and the batch's KV once, and multiplies by every weight once per
sequence; it cannot be faster than the slower of the two.
"""

import time
from collections.abc import Callable
from typing import Final

import torch
from msgspec import Struct

from backends.bench.head import processor
from backends.layers.linear import Int8Linear, Linear
from backends.quantization.int8 import quantize_int8

_READ_BYTES: Final = 256 * 2**20
_MATRIX_SIDE: Final = 1024
_REPEATS: Final = 9


class Machine(Struct, frozen=True, kw_only=True):
    """One device's measured rates."""

    name: str
    bytes_per_s: float
    """Reading memory, with as many threads as torch uses."""
    flops_per_s: float
    """Multiplying square matrices of 1024 as the model's layers do."""


def measure_machine(device: torch.device, dtype: torch.dtype, *, int8: bool = False) -> Machine:
    """Measure a device; takes about a second on a CPU.

    Args:
        dtype: of activations, and of the weights unless `int8`.
        int8: the model's layers multiply by int8 weights.
    """
    values = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device=device)
    read_s = _best_s(values.sum, device)
    del values
    left, right = torch.randn(2, _MATRIX_SIDE, _MATRIX_SIDE, device=device).to(dtype)
    layer = Int8Linear(*quantize_int8(right), None, dtype=dtype) if int8 else Linear(right)
    multiply_s = _best_s(lambda: layer(left), device)
    return Machine(
        name=_device_name(device),
        bytes_per_s=_READ_BYTES / read_s,
        flops_per_s=2 * _MATRIX_SIDE**3 / multiply_s,
    )


def roofline_share(
    machine: Machine, *, step_s: float, step_bytes: int, step_flops: int
) -> float | None:
    """Divide the shortest possible step by the measured one; None if none was measured.

    Weights that stay in the CPU's caches can be read faster than memory: it may exceed 1.
    """
    if step_s <= 0.0:
        return None
    shortest = max(step_bytes / machine.bytes_per_s, step_flops / machine.flops_per_s)
    return round(shortest / step_s, 4)


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of several calls, seconds: what else runs only lengthens them."""
    work()
    took = []
    for _ in range(_REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return min(took)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()
