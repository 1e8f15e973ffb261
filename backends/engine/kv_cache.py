"""The paged KV cache's memory: how many blocks fit, and the tensors themselves."""

import math
import os
from typing import Final

import numpy as np
import torch

from backends.engine.config import DEFAULT_KV_MEMORY_BYTES
from backends.layers.attention import LayerCache
from backends.models.config import ModelConfig
from kernels.checks import CODE_DTYPES

_SHARE_OF_CPU_MEMORY: Final = 0.1
"""Of what is free: a laptop has other things to do, and small models need little."""


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the cache bytes of one token over all layers."""
    per_head = config.head_dim * dtype.itemsize
    if dtype in CODE_DTYPES:
        per_head += torch.float32.itemsize  # its scale
    return config.num_hidden_layers * 2 * config.num_key_value_heads * per_head


def kv_memory_bytes(device: torch.device, gpu_memory_utilization: float) -> int:
    """Return the memory that the cache may take, with the weights already loaded.

    Args:
        device: On a GPU, `gpu_memory_utilization` of its whole memory less what is in use; on
            the CPU, a tenth of what is free, but never less than the engine's default.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(total * gpu_memory_utilization) - (total - free))
    return max(DEFAULT_KV_MEMORY_BYTES, int(free_cpu_memory() * _SHARE_OF_CPU_MEMORY))


def allocate(
    config: ModelConfig,
    *,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[LayerCache]:
    """Return one cache per layer: keys and values, [num_blocks, block_size, Hkv, D] each.

    Zeroed, because attention kernels may read unused slots and multiply them by 0. 8-bit codes
    have their scales beside them.
    """
    shape = (num_blocks, block_size, config.num_key_value_heads, config.head_dim)

    def layer() -> LayerCache:
        halves = [_zeros(shape, dtype, device) for _ in range(2)]
        if dtype in CODE_DTYPES:
            halves += [_zeros(shape[:3], torch.float32, device) for _ in range(2)]
        return LayerCache(*halves)

    return [layer() for _ in range(config.num_hidden_layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that take memory on the CPU only where something is written.

    torch.zeros writes every page; calloc, which numpy uses, leaves that to the first touch.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    zeros = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(zeros).view(dtype).view(shape)


def free_cpu_memory() -> int:
    """Return the bytes of physical memory that are free now, 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
