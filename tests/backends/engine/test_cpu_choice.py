"""Dtypes on a CPU: measured once, remembered, and the exact ones unless others are faster."""

import logging
from pathlib import Path

import pytest

from backends.engine.cpu_choice import CANDIDATES, EXACT, Dtypes, choose, fastest, shrunk
from backends.models.config import ModelConfig
from backends.models.families import ExpertsConfig, Family
from kernels import native

EXPERTS = ExpertsConfig(
    count=8,
    per_token=2,
    intermediate_size=4096,
    renormalise=True,
    router="r",
    parts=("g", "u", "d"),
)


def _config(hidden: int, heads: int, kv_heads: int, experts: bool = False) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=4096,
        family=Family(windows=(None,) * 4, experts=(EXPERTS if experts else None,) * 4),
    )


@pytest.mark.parametrize(
    ("times_us", "best"),
    [((100, 99, 98, 97), 0), ((100, 80, 79, 300), 1), ((100, 80, 70, 60), 3), ((9, 9, 9, 9), 0)],
)
def test_what_is_less_exact_must_be_faster_by_a_margin(
    times_us: tuple[float, ...], best: int
) -> None:
    """Noise does not cost digits; a real gain does."""
    assert fastest(dict(zip(CANDIDATES, times_us, strict=True))) == CANDIDATES[best]


def test_a_wide_model_is_measured_in_small() -> None:
    """Heads keep their size and grouping; experts count as the dense block that a token meets."""
    small = shrunk(_config(4096, 32, 8, experts=True))
    assert (small.hidden_size, small.head_dim) == (512, 64)
    assert (small.num_attention_heads, small.num_key_value_heads) == (4, 1)
    assert small.intermediate_size == 2 * 4096 // 8
    assert shrunk(_config(128, 2, 2)).hidden_size == 128


def test_a_choice_is_measured_once_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second start reads what the first one found; a broken file is measured anew."""
    native.available()  # Built before the cache moves away, not once more.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level(logging.INFO)
    two = (EXACT, Dtypes("float32", "float16"))
    config = _config(64, 2, 1)
    chosen = choose(config, "int8", candidates=two)
    assert chosen in two
    (file,) = (tmp_path / "headgate").glob("dtypes-*.json")
    assert f"cpu_dtypes_chosen: {chosen}" in caplog.text
    file.write_text("[9.0, 1.0]")
    assert choose(config, "int8", candidates=two) == two[1]
    for broken in ("[9.0", "[9.0]"):
        file.write_text(broken)
        assert choose(config, "int8", candidates=two) in two
