"""Our Llama computes what transformers' does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.engine.kv_cache import allocate
from backends.layers.attention import ForwardBatch
from backends.models.registry import load_model
from backends.quantization.schemes import QuantizeAtLoad
from backends.quantize import quantize_folder
from tests.backends.conftest import SHAPE

pytestmark = pytest.mark.long

TOLERANCE = 1e-4
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "wide_heads": {"head_dim": 32},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {"rope_parameters": {"rope_theta": 1e4, **_YARN}},
    "yarn_mscale": {
        "rope_parameters": {"rope_theta": 1e4, **_YARN, "mscale": 0.7, "mscale_all_dim": 1.2}
    },
    "yarn_smooth": {
        "rope_parameters": {"rope_theta": 1e4, **_YARN, "truncate": False, "beta_fast": 24.0}
    },
}


def _ours(
    folder: Path,
    ids: Tensor,
    chunks: list[int],
    *,
    max_positions: int | None = None,
    quantization: QuantizeAtLoad | None = None,
) -> Tensor:
    """Run one sequence through our model, `chunks` tokens at a time; return logits [T, V]."""
    model = load_model(
        folder,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_positions=max_positions,
        quantization=quantization,
    )
    caches = allocate(
        model.config, num_blocks=32, block_size=8, dtype=torch.float32, device=ids.device
    )
    table = torch.randperm(32, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    rows, start = [], 0
    for count in chunks:
        places = torch.arange(start, start + count)
        start += count
        batch = ForwardBatch(
            token_ids=ids[places],
            positions=places,
            slot_mapping=table[places // 8].long() * 8 + places % 8,
            block_tables=table[None, :],
            query_start_lens=torch.tensor([0, count], dtype=torch.int32),
            context_lens=torch.tensor([start], dtype=torch.int32),
            max_query_len=count,
            max_context_len=start,
        )
        with torch.inference_mode():
            rows.append(model.logits(model.forward(batch, caches)))
    return torch.cat(rows)


def _theirs(folder: Path, ids: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: Tensor = model(ids[None]).logits[0]
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_logits_equal_those_of_transformers(
    variant: str, make_checkpoint: Callable[..., Path]
) -> None:
    """Prefill in odd chunks, then single steps: every logit within 1e-4 of transformers'."""
    folder = make_checkpoint(**VARIANTS[variant])
    ids = torch.randint(3, 512, (200,), generator=torch.Generator().manual_seed(2))
    ours = _ours(folder, ids, [100, 1, 37, 58, 1, 1, 2])
    assert (ours - _theirs(folder, ids)).abs().max() < TOLERANCE


_GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0156,
    "logits_scaling": 8.0,
}
_LONGROPE = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0] * 2,
        "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0] * 2,
        "original_max_position_embeddings": 64,
    },
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 19}
_QWEN_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": 24}),
    "mistral_without_window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2_windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3_windows": (
        "Qwen3",
        {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1, "head_dim": 16},
    ),
    "granite": ("Granite", _GRANITE),
    "granite_tied": ("Granite", {**_GRANITE, "tie_word_embeddings": True, "attention_bias": True}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3_window": ("Phi3", {"sliding_window": 24}),
    "phi3_longrope": ("Phi3", {**_LONGROPE, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "phi4_mini": (
        "Phi3",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75}, "head_dim": 16},
    ),
    "gemma2": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", _GEMMA),
    "gemma3_pattern": ("Gemma3", {**_GEMMA, "num_hidden_layers": 7}),
    "gemma3_wide": ("Gemma3", {**_GEMMA, "num_hidden_layers": 7, "sliding_window": 300}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", {**_QWEN_EXPERTS, "norm_topk_prob": True, "head_dim": 16}),
    "qwen3_moe_some_layers": (
        "Qwen3Moe",
        {**_QWEN_EXPERTS, "mlp_only_layers": [0], "norm_topk_prob": False, "head_dim": 16},
    ),
}


@pytest.mark.parametrize("variant", FAMILIES)
def test_families_logits_equal_those_of_transformers(
    variant: str, make_checkpoint: Callable[..., Path]
) -> None:
    """Windows, biases, head norms and experts: every logit within 1e-4 of transformers'."""
    family, changes = FAMILIES[variant]
    folder = make_checkpoint(family=family, **changes)
    ids = torch.randint(3, 512, (120,), generator=torch.Generator().manual_seed(2))
    ours = _ours(folder, ids, [50, 1, 37, 28, 1, 1, 2])
    assert (ours - _theirs(folder, ids)).abs().max() < TOLERANCE


def test_text_model_is_taken_out_of_one_that_sees_images(tmp_path: Path) -> None:
    """Gemma 3 from 4B up: its own shape, names and weights, without the rest."""
    import transformers

    torch.manual_seed(0)
    text = {**SHAPE, **_GEMMA, "num_hidden_layers": 7}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 1, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=511
    )
    whole = transformers.Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    ids = torch.randint(3, 500, (60,), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        theirs = whole(ids[None], token_type_ids=torch.zeros(1, 60, dtype=torch.int64)).logits[0]
    assert (_ours(tmp_path, ids, [40, 20]) - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize(("scheme", "near"), [("int8", 0.999), ("int4", 0.9), ("fp8", 0.99)])
@pytest.mark.parametrize("variant", ["granite_tied", "phi4_mini"])
def test_families_are_rounded_at_load_and_on_disk(
    variant: str,
    scheme: QuantizeAtLoad,
    near: float,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Channels change places before they are rounded, or as codes that were rounded long ago."""
    family, changes = FAMILIES[variant]
    folder = make_checkpoint(family=family, **changes)
    ids = torch.randint(3, 512, (60,), generator=torch.Generator().manual_seed(2))
    quantize_folder(str(folder), tmp_path / "rounded", scheme)
    at_load = _ours(folder, ids, [60], quantization=scheme)
    stored = _ours(tmp_path / "rounded", ids, [60])
    plain = _ours(folder, ids, [60])
    for rounded in (at_load, stored):
        together = torch.stack((plain.flatten(), rounded.flatten()))
        assert torch.corrcoef(together)[0, 1] > near
    if (variant, scheme) == ("phi4_mini", "int8"):
        assert torch.equal(at_load, stored)


def test_longrope_in_a_context_as_long_as_trained(make_checkpoint: Callable[..., Path]) -> None:
    """It has its short factors, which transformers has for short prompts whatever the context."""
    folder = make_checkpoint(family="Phi3", **_LONGROPE, num_attention_heads=2)
    ids = torch.randint(3, 512, (60,), generator=torch.Generator().manual_seed(2))
    theirs = _theirs(folder, ids)
    assert (_ours(folder, ids, [40, 20], max_positions=64) - theirs).abs().max() < TOLERANCE
    assert (_ours(folder, ids, [40, 20]) - theirs).abs().max() > 0.1


def test_llama_keeps_its_tables_no_longer_than_asked(tiny_llama: Path) -> None:
    """A shorter context than the model's makes shorter rotary tables."""
    model = load_model(
        tiny_llama, device=torch.device("cpu"), dtype=torch.float32, max_positions=40
    )
    assert model.cos_sin_cache.shape == (40, 16)
