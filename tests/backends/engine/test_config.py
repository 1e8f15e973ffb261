"""Configurations are consistent or refused in clear words."""

import pytest

from backends.engine.config import EngineConfig, SpeculationConfig


def test_config_derive_fills_the_pool_from_memory() -> None:
    """The pool takes what the memory holds."""
    config = EngineConfig.derive(
        context_tokens=2048, kv_bytes_per_token=6144, kv_memory_bytes=64 * 2**20
    )
    assert config.num_blocks == 64 * 2**20 // (16 * 6144)
    assert config.kv_tokens == config.num_blocks * 16
    assert config.block_bytes == 16 * 6144
    assert config.longest_sequence == 2048


def test_config_derive_takes_no_more_than_the_largest_load_can_use() -> None:
    """A small context does not fill a large memory."""
    config = EngineConfig.derive(
        context_tokens=100, kv_bytes_per_token=8, kv_memory_bytes=2**30, max_num_seqs=4
    )
    assert config.num_blocks == 7 * 4


def test_config_derive_without_chunked_prefill_admits_the_longest_prompt() -> None:
    """The step is made large enough for a prompt in one piece."""
    config = EngineConfig.derive(
        context_tokens=8192, kv_bytes_per_token=8, enable_chunked_prefill=False
    )
    assert config.max_num_batched_tokens == 8192


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_model_len": 4096}, "max_model_len is 4096"),
        ({"kv_memory_bytes": 1000}, "kv_memory_bytes is 1000"),
        ({"block_size": 0}, "block_size is 0"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"max_num_batched_tokens": 16}, "max_num_batched_tokens is 16"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 512},
            "without chunked prefill",
        ),
    ],
)
def test_config_refusals_name_the_value(fields: dict[str, int], named: str) -> None:
    """A value that cannot work is refused with its name and value."""
    with pytest.raises(ValueError, match=named):
        EngineConfig.derive(context_tokens=2048, kv_bytes_per_token=6144, **fields)  # type: ignore[arg-type]


def test_speculation_config_draft_needs_a_model() -> None:
    """`draft` without a model says what to do."""
    with pytest.raises(ValueError, match="draft_model is not set"):
        SpeculationConfig(method="draft")
