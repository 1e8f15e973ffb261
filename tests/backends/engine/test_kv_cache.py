"""Sizing and allocating the cache."""

from pathlib import Path

import torch

from backends.engine.config import DEFAULT_KV_MEMORY_BYTES
from backends.engine.kv_cache import allocate, kv_bytes_per_token, kv_memory_bytes
from backends.models.config import read_model_config

CPU = torch.device("cpu")


def test_allocated_bytes_are_those_announced(tiny_llama: Path) -> None:
    """Blocks times block size times bytes per token is what the tensors take."""
    config = read_model_config(tiny_llama)
    for dtype in (torch.float32, torch.bfloat16):
        caches = allocate(config, num_blocks=5, block_size=8, dtype=dtype, device=CPU)
        assert len(caches) == config.num_hidden_layers
        assert caches[0].keys.shape == (5, 8, config.num_key_value_heads, config.head_dim)
        total = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
        assert total == 5 * 8 * kv_bytes_per_token(config, dtype)


def test_cpu_memory_for_the_cache_has_a_floor_and_a_bound() -> None:
    """At least the engine's default, never most of the machine."""
    memory = kv_memory_bytes(CPU, 0.9)
    assert memory >= DEFAULT_KV_MEMORY_BYTES
    assert memory < 2**45
