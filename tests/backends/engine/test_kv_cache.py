"""Sizing and allocating the cache."""

import mmap
from pathlib import Path

import pytest
import torch

from backends.engine.config import DEFAULT_KV_MEMORY_BYTES
from backends.engine.kv_cache import allocate, kv_bytes_per_token, kv_memory_bytes
from backends.layers.attention import ForwardBatch
from backends.models.config import read_model_config
from backends.models.registry import Model, load_model

CPU = torch.device("cpu")


def test_allocated_bytes_are_those_announced(tiny_llama: Path) -> None:
    """Blocks times block size times bytes per token is what the tensors take."""
    config = read_model_config(tiny_llama)
    for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn):
        caches = allocate(config, num_blocks=5, block_size=8, dtype=dtype, device=CPU)
        assert len(caches) == config.num_hidden_layers
        assert caches[0].keys.shape == (5, 8, config.num_key_value_heads, config.head_dim)
        total = sum(half.nbytes for cache in caches for half in cache if half is not None)
        assert total == 5 * 8 * kv_bytes_per_token(config, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_caches_on_a_cpu_are_zeros_that_begin_with_a_page(
    tiny_llama: Path, dtype: torch.dtype
) -> None:
    """Each half of each layer: vectors lie within lines, and what was not written is no NaN."""
    config = read_model_config(tiny_llama)
    caches = allocate(config, num_blocks=7, block_size=3, dtype=dtype, device=CPU)
    halves = [half for cache in caches for half in cache if half is not None]
    assert all(half.data_ptr() % mmap.PAGESIZE == 0 for half in halves)
    assert all(half.is_contiguous() and not half.float().any() for half in halves)
    halves[0].fill_(1)
    assert not any(half.float().any() for half in halves[1:])


def test_cpu_memory_for_the_cache_has_a_floor_and_a_bound() -> None:
    """At least the engine's default, never most of the machine."""
    memory = kv_memory_bytes(CPU, 0.9)
    assert memory >= DEFAULT_KV_MEMORY_BYTES
    assert memory < 2**45


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.int8, 0.03), (torch.float8_e4m3fn, 0.1)], ids=["int8", "fp8"]
)
def test_8_bit_cache_barely_changes_the_logits(
    tiny_llama: Path, dtype: torch.dtype, most: float
) -> None:
    """A prompt and the steps after it, read back from codes, stay near the fp32 cache's logits."""
    model = load_model(tiny_llama, device=CPU, dtype=torch.float32)
    ids = torch.randint(3, 200, (30,), generator=torch.Generator().manual_seed(2))
    exact, coded = (_logits(model, ids, kind) for kind in (torch.float32, dtype))
    error = (coded - exact).norm() / exact.norm()
    assert 0 < error < most


def _logits(model: Model, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The last rows' logits of a prompt of 25 tokens and five decode steps."""
    caches = allocate(model.config, num_blocks=8, block_size=4, dtype=dtype, device=CPU)
    table = torch.arange(8, dtype=torch.int32)[None]
    rows, start = [], 0
    for count in (25, 1, 1, 1, 1, 1):
        places = torch.arange(start, start + count)
        start += count
        batch = ForwardBatch(
            token_ids=ids[places],
            positions=places,
            slot_mapping=places,
            block_tables=table,
            query_start_lens=torch.tensor([0, count], dtype=torch.int32),
            context_lens=torch.tensor([start], dtype=torch.int32),
            max_query_len=count,
            max_context_len=start,
        )
        rows.append(model.logits(model.forward(batch, caches))[-1])
    return torch.stack(rows)
