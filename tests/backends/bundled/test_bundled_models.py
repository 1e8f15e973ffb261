"""The shipped folders and the exporter: standard layout, small error, a floor of ability."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from backends.bundled import BUNDLED_MODELS, bundled_path
from backends.bundled.card import render_card
from backends.bundled.config import SPECS, ModelSpec
from backends.bundled.errors import ExportError
from backends.bundled.export import export_model, write_model
from backends.bundled.facts import make_facts
from backends.bundled.generate import answer_all
from backends.bundled.load import load_model
from backends.bundled.model import Llama, init_weights, num_parameters
from backends.bundled.quantize import dequantize_int8, quantize_int8
from backends.bundled.tokenizer import EOS_ID, IM_END_ID, prompt_text

ADDITIONS = [f"What is {a} + {b}?" for a in range(2, 10) for b in range(2, 10)]
SUMS = [str(a + b) for a in range(2, 10) for b in range(2, 10)]


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_shipped_folder_is_the_recipe_s_shape(name: str) -> None:
    """The folder loads, in the shape of its spec, with int8 layers and one scale a channel."""
    model, _ = load_model(bundled_path(name))
    assert model.spec == SPECS[name]
    stored = load_file(bundled_path(name) / "model.safetensors")
    layers = [key for key in stored if key.endswith("_proj.weight")]
    assert len(layers) == 7 * model.spec.num_hidden_layers
    for key in layers:
        assert stored[key].dtype == torch.int8
        assert stored[f"{key}_scale"].shape == (stored[key].shape[0], 1)
    assert stored["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_shipped_weights_stay_small() -> None:
    """The models together are at most 35 MB."""
    paths = [bundled_path(name) / "model.safetensors" for name in BUNDLED_MODELS]
    assert sum(path.stat().st_size for path in paths) <= 35_000_000


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_model_card_is_what_was_measured(name: str) -> None:
    """The card in the folder is the one its evaluation renders."""
    card = (bundled_path(name) / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == render_card(bundled_path(name))
    model, _ = load_model(bundled_path(name))
    assert f"{num_parameters(model):,} parameters" in card


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.floats(1e-6, 1e4), st.integers(0, 99))
def test_int8_errs_by_at_most_one_step(rows: int, columns: int, size: float, seed: int) -> None:
    """Each weight comes back within half a step, and the scale's own rounding."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    weight[0] = 0.0
    stored, scale = quantize_int8(weight)
    error = (dequantize_int8(stored, scale) - weight).abs()
    assert bool((error <= scale.float() * 1.01).all())
    assert not stored[0].any()


@pytest.fixture
def exported(tiny_spec: ModelSpec, tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A tiny random model as an int8 folder."""
    model = Llama(tiny_spec)
    init_weights(model, 1)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(weight, std=0.1)
    write_model(tiny_spec, model.state_dict(), tiny_tokenizer, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_float_export_gives_the_same_logits_in_transformers(exported: Path, tmp_path: Path) -> None:
    """The plain folder is a standard Llama: transformers computes what we compute."""
    from transformers import AutoModelForCausalLM

    model, _ = load_model(exported)
    export_model(exported, None, tmp_path / "float32", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.float32)
    ids = torch.randint(0, 4096, (2, 20))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_int8_survives_a_second_export(exported: Path, tmp_path: Path) -> None:
    """Quantizing what was quantized changes nothing beyond the scale's last bit."""
    export_model(exported, None, tmp_path / "again")
    once, twice = (load_file(f / "model.safetensors") for f in (exported, tmp_path / "again"))
    for key in once:
        torch.testing.assert_close(once[key].float(), twice[key].float(), atol=1.0, rtol=0.02)


def test_cached_answers_equal_recomputed_ones(exported: Path) -> None:
    """Greedy generation with a cache picks what full recomputation picks."""
    model, tokenizer = load_model(exported)
    answer = answer_all(model, tokenizer, ["Hello there"], max_new_tokens=8)[0]
    ids, written = tokenizer.encode(prompt_text("Hello there")).ids, list[int]()
    for _ in range(8):
        token = int(model(torch.tensor([ids + written]))[0, -1].argmax())
        if token in (IM_END_ID, EOS_ID):
            break
        written.append(token)
    assert answer.text == tokenizer.decode(written)


def test_load_names_what_is_wrong_with_a_folder(exported: Path, tmp_path: Path) -> None:
    """A missing folder, a cut weights file and a wrong config are each named."""
    with pytest.raises(ExportError, match=r"config\.json"):
        load_model(tmp_path / "none")
    weights = exported / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000])
    with pytest.raises(ExportError, match=r"model\.safetensors.*cannot be read"):
        load_model(exported)
    weights.write_bytes(whole)
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(ExportError, match="do not fit"):
        load_model(exported)


def test_shipped_small_adds_one_digit_numbers() -> None:
    """The small model adds a good part of all one-digit pairs, far above chance."""
    model, tokenizer = load_model(bundled_path("small"))
    answers = answer_all(model, tokenizer, ADDITIONS, max_new_tokens=8)
    right = sum(a.text == want for a, want in zip(answers, SUMS, strict=True))
    assert right >= 24


def test_shipped_small_knows_facts_in_other_words() -> None:
    """The small model answers most held-out wordings exactly, and more than nano does."""
    known = make_facts(seed=1, split="test", exact=True)
    right = {}
    for name in BUNDLED_MODELS:
        model, tokenizer = load_model(bundled_path(name))
        answers = answer_all(model, tokenizer, [prompt for prompt, _ in known])
        right[name] = sum(a.text == want for a, (_, want) in zip(answers, known, strict=True))
    assert right["small"] >= 0.65 * len(known)
    assert right["small"] > right["nano"] > 0.3 * len(known)


def test_shipped_models_say_who_they_are() -> None:
    """Asked who it is, each model says so and ends its turn."""
    for name in BUNDLED_MODELS:
        model, tokenizer = load_model(bundled_path(name))
        answer = answer_all(model, tokenizer, ["Who are you?"])[0]
        assert answer.ended
        assert "Headgate" in answer.text
