"""Loading checkpoints: every layout we promise, and a clear refusal of what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backends.errors import ModelLoadError
from backends.layers.linear import Int8Linear, Linear
from backends.layers.mlp import Mlp
from backends.models.config import read_model_config
from backends.models.folder import model_folder, revision
from backends.models.registry import Model, load_model
from backends.quantization.int8 import dequantize_int8, quantize_int8
from backends.quantization.schemes import StoredQuantization
from kernels.quant_linear.reference import round_rows

INT8_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
            "input_activations": None,
        }
    },
    "ignore": ["lm_head"],
}


def _load(folder: Path, **options: Any) -> Model:
    options.setdefault("dtype", torch.float32)
    return load_model(folder, device=torch.device("cpu"), **options)


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint to be damaged."""
    return copytree(tiny_llama, tmp_path / "copy")


def _change(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.update(changes)
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def _tensors(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def _weights(model: Model) -> list[Tensor]:
    return [
        layer.weight
        for block in model.layers
        for layer in (block.qkv, block.output, *_mlp(block))
        if isinstance(layer, Linear)
    ]


def _mlp(block: Any) -> tuple[Any, Any]:
    assert isinstance(block.mlp, Mlp)
    return block.mlp.gate_up, block.mlp.down


def test_sharded_checkpoints_load_like_whole_ones(
    make_checkpoint: Callable[..., Path], tiny_llama: Path
) -> None:
    """The same tensors come out of several files with an index."""
    sharded = make_checkpoint(save={"max_shard_size": "100KB"})
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    for ours, theirs in zip(_weights(_load(sharded)), _weights(_load(tiny_llama)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_half_precision_loads_into_any_dtype(
    dtype: torch.dtype, copy: Path, tiny_llama: Path
) -> None:
    """16-bit files serve as fp32 and as they are."""
    halves = {name: tensor.to(dtype) for name, tensor in _tensors(copy).items()}
    save_file(halves, copy / "model.safetensors", metadata={"format": "pt"})
    loaded = (_load(tiny_llama), _load(copy), _load(copy, dtype=dtype))
    for exact, full, half in zip(*map(_weights, loaded), strict=True):
        assert full.dtype == torch.float32
        assert half.dtype == dtype
        assert torch.equal(full, exact.to(dtype).float())
        assert torch.equal(full, half.float())


def test_int8_folders_load_as_they_are(copy: Path) -> None:
    """Codes and scales of a compressed-tensors folder arrive unchanged, fused by rows."""
    stored: dict[str, Tensor] = {}
    for name, tensor in _tensors(copy).items():
        if name.endswith("_proj.weight"):
            codes, scales = quantize_int8(tensor)
            stored[name], stored[f"{name}_scale"] = codes, scales[:, None].to(torch.bfloat16)
        else:
            stored[name] = tensor.to(torch.bfloat16)
    save_file(stored, copy / "model.safetensors", metadata={"format": "pt"})
    _change(copy, quantization_config=INT8_CONFIG)
    model = _load(copy)
    assert read_model_config(copy).quantization == StoredQuantization(scheme="int8")
    up = _mlp(model.layers[1])[0]
    assert isinstance(up, Int8Linear)
    names = [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up")]
    assert torch.equal(up.codes, torch.cat([stored[name] for name in names]))
    scales = torch.cat([stored[f"{name}_scale"] for name in names]).float().squeeze(1)
    assert torch.equal(up.scales, scales)
    assert isinstance(model.head, Linear)
    x = torch.randn(3, up.codes.shape[1])
    weight = dequantize_int8(up.codes, scales, torch.float32)
    torch.testing.assert_close(up(x), (x if up.packed is None else round_rows(x)) @ weight.T)
    assert isinstance(_load(copy, quantization="int8").layers[0].qkv, Int8Linear)


def test_int8_at_load_rounds_every_linear_layer(tiny_llama: Path) -> None:
    """Each weight is off by at most half a step of its channel."""
    exact, rounded = _load(tiny_llama), _load(tiny_llama, quantization="int8")
    for plain, small in (
        (exact.layers[0].qkv, rounded.layers[0].qkv),
        (_mlp(exact.layers[1])[1], _mlp(rounded.layers[1])[1]),
        (exact.head, rounded.head),
    ):
        assert isinstance(plain, Linear)
        assert isinstance(small, Int8Linear)
        back = dequantize_int8(small.codes, small.scales, torch.float32)
        assert ((back - plain.weight).abs() <= 0.501 * small.scales[:, None]).all()


def test_int8_keeps_channels_of_zeros() -> None:
    """A channel of zeros comes back as zeros, not as NaN."""
    weight = torch.randn(3, 8)
    weight[1] = 0.0
    codes, scales = quantize_int8(weight)
    assert dequantize_int8(codes, scales, torch.float32)[1].abs().max() == 0.0


def test_a_tied_head_ignores_a_stored_copy(make_checkpoint: Callable[..., Path]) -> None:
    """Some exporters store lm_head although it is tied; the embedding counts."""
    folder = make_checkpoint(tie_word_embeddings=True)
    tensors = _tensors(folder)
    tensors["lm_head.weight"] = torch.zeros_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = _load(folder)
    assert isinstance(model.head, Linear)
    assert torch.equal(model.head.weight, model.embedding)


def test_missing_and_misshaped_tensors_are_named(copy: Path) -> None:
    """The error says which tensor, and both shapes."""
    tensors = _tensors(copy)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, copy / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        _load(copy)
    tensors[name] = torch.zeros(5, 64)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(
        ModelLoadError, match=r"up_proj\.weight' is \[5, 64\].*asks for \[112, 64\]"
    ):
        _load(copy)


def test_tensors_the_architecture_does_not_use_are_refused(copy: Path) -> None:
    """A checkpoint with extra weights would answer wrongly, so it is not served."""
    tensors = _tensors(copy)
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"holds 1 tensors.*q_norm"):
        _load(copy)


def test_damaged_and_missing_files_are_named(copy: Path, tmp_path: Path) -> None:
    """Truncated weights, missing shards, broken JSON, an empty folder: each says which file."""
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 5, 4000, len(whole) - 7):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelLoadError, match=r"model\.safetensors' is truncated"):
            _load(copy)
    file.unlink()
    with pytest.raises(ModelLoadError, match=r"neither model\.safetensors nor"):
        _load(copy)
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "a.safetensors"}}))
    with pytest.raises(ModelLoadError, match=r"names 'a\.safetensors', which is not"):
        _load(copy)
    index.write_text("[]")
    with pytest.raises(ModelLoadError, match="no index of safetensors"):
        _load(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="not valid JSON"):
        _load(copy)
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM; we serve: LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "'spiral' is not supported.*llama3"),
        (
            {"rope_parameters": {"rope_type": "su", "short_factor": [1.0] * 8}},
            "long_factor has 0 numbers; need 8",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs a factor"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.2}},
            r"partial_rotary_factor is 0\.2 with heads of 16; allowed",
        ),
        ({"partial_rotary_factor": 1.5}, r"partial_rotary_factor is 1\.5"),
        (
            {"architectures": ["GraniteForCausalLM"], "residual_multiplier": 0},
            "residual_multiplier is 0; allowed: a number above 0",
        ),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 3}},
            "'gptq'.*'bits': 3.*we serve",
        ),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": True}},
            "'desc_act': True.*we serve",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}},
            "'version': 'gemv'.*we serve",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"g": {"weights": {"num_bits": 2}}},
                }
            },
            "group 'g'.*we serve",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configurations_we_do_not_serve_are_refused_with_what_we_do(
    changes: dict[str, Any], message: str, copy: Path
) -> None:
    """Each refusal names the key, its value and what is allowed."""
    _change(copy, **changes)
    with pytest.raises(ModelLoadError, match=message):
        _load(copy)


def test_both_generations_of_gemmas_rope_keys_mean_the_same(
    make_checkpoint: Callable[..., Path],
) -> None:
    """Angles of layers without windows, and of those with one."""
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    folder = make_checkpoint(family="Gemma3", rope_parameters=rope, head_dim=16)
    new = read_model_config(folder)
    assert new.local_rope is not None
    assert (new.rope.factor, new.local_rope.rope_theta) == (8.0, 1e4)
    _change(
        folder,
        rope_parameters=...,
        rope_theta=1e6,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        rope_local_base_freq=1e4,
        layer_types=...,
        sliding_window_pattern=6,
    )
    assert read_model_config(folder) == new


def test_both_generations_of_rope_keys_mean_the_same(copy: Path) -> None:
    """transformers 4's rope_theta and rope_scaling equal 5's rope_parameters."""
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    new = {"rope_type": "llama3", "rope_theta": 500_000.0, **scaling}
    _change(copy, rope_parameters=new)
    modern = read_model_config(copy).rope
    for kind in ("rope_type", "type"):
        _change(
            copy,
            rope_parameters=...,
            rope_theta=500_000.0,
            rope_scaling={kind: "llama3", **scaling},
        )
        assert read_model_config(copy).rope == modern
    _change(copy, rope_scaling=None)
    assert read_model_config(copy).rope.rope_type == "default"
    assert read_model_config(copy).rope.rope_theta == 500_000.0


def test_model_names_resolve_or_are_refused(tmp_path: Path) -> None:
    """A folder is itself; everything that is none says what to do."""
    assert model_folder(str(tmp_path)) == tmp_path
    for name, message in (
        ("bundled:huge", "no bundled model 'huge'"),
        ("/nowhere/model.gguf", "there is no file"),
        ("/nowhere", "is no folder"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            model_folder(name)


def test_revision_changes_with_contents_alone(copy: Path, tiny_llama: Path) -> None:
    """Equal folders have one revision; weights, template, config or variant change it."""
    first = revision(copy)
    assert revision(tiny_llama) == first
    (copy / "README.txt").write_text("irrelevant")
    assert revision(copy) == first
    seen = {first, revision(copy, "int8"), revision(copy, "in", "t8")}
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    seen.add(revision(copy))
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    seen.add(revision(copy))
    assert len(seen) == 5
