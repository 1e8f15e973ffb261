"""The paged KV cache's memory: how many blocks fit, and the tensors themselves."""

import math
import mmap
import os
from contextlib import suppress
from typing import Final

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

    torch.zeros writes every page; a mapping leaves that to the first touch. It begins with a page,
    so that no vector of a head lies across two lines of a cache, and has large pages where the
    system gives them, as a step walks through more small ones than a core remembers.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not Linux, or one without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)


def free_cpu_memory() -> int:
    """Return the bytes of physical memory that are free now, 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
