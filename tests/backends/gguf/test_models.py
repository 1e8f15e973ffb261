"""Models in .gguf files beside the same weights in a folder."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor

from backends.contract import SamplingParams
from backends.engine.kv_cache import allocate
from backends.errors import ModelLoadError
from backends.gguf.blocks import groups
from backends.gguf.checkpoint import GgufCheckpoint
from backends.gguf.config import GROUPS
from backends.gguf.file import GgufFile
from backends.gguf.file import Tensor as Stored
from backends.gguf.types import TYPES, TensorType
from backends.layers.attention import ForwardBatch
from backends.layers.coded_linear import GroupQuantLinear
from backends.layers.rope import inverse_frequencies
from backends.models.config import read_model_config
from backends.models.folder import model_folder, revision
from backends.models.generation import default_sampling
from backends.models.inspect import inspect_model
from backends.models.registry import load_model
from backends.quantization.codes import GroupCodes, dequantise
from backends.quantize import quantize_folder
from tests.backends.gguf.writer import write_gguf

pytestmark = pytest.mark.long

Write = Callable[..., Path]
_TOKENS = torch.randint(3, 512, (60,), generator=torch.Generator().manual_seed(2))


def _logits(model_path: Path) -> Tensor:
    """Prefill of one sequence; [T, V]."""
    model = load_model(model_path, device=torch.device("cpu"), dtype=torch.float32)
    count = len(_TOKENS)
    caches = allocate(
        model.config, num_blocks=8, block_size=8, dtype=torch.float32, device=_TOKENS.device
    )
    places = torch.arange(count)
    batch = ForwardBatch(
        token_ids=_TOKENS,
        positions=places,
        slot_mapping=places,
        block_tables=torch.arange(8, dtype=torch.int32)[None],
        query_start_lens=torch.tensor([0, count], dtype=torch.int32),
        context_lens=torch.tensor([count], dtype=torch.int32),
        max_query_len=count,
        max_context_len=count,
    )
    with torch.inference_mode():
        return model.logits(model.forward(batch, caches))


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}, {}),
    "llama_biased": ("Llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama_linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 3.0},
    ),
    "llama_yarn": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            }
        },
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 64,
        },
    ),
    "mistral_window": ("Mistral", {"sliding_window": 24}, {"llama.attention.sliding_window": 24}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {}),
    "qwen2": ("Qwen2", {}, {}),
    "qwen3": ("Qwen3", {"head_dim": 32}, {}),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "norm_topk_prob": True, "head_dim": 16}, {}),
    "phi3": ("Phi3", {"sliding_window": 24}, {"phi3.attention.sliding_window": 24}),
    "phi4_mini": (
        "Phi3",
        {
            "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
            "sliding_window": None,
        },
        {},
    ),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.25,
            "attention_multiplier": 0.125,
            "logits_scaling": 8.0,
        },
        {
            "granite.embedding_scale": 12.0,
            "granite.residual_scale": 0.25,
            "granite.attention.scale": 0.125,
            "granite.logit_scale": 8.0,
        },
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_family_gives_the_logits_of_its_folder(
    family: str, make_checkpoint: Write, tmp_path: Path
) -> None:
    """Names, the order of rows, rotary scaling, biases, ties and experts: bit for bit in F32."""
    kind, changes, metadata = FAMILIES[family]
    folder = make_checkpoint(family=kind, **changes)
    file = write_gguf(folder, tmp_path / "m.gguf", more=metadata)
    assert torch.equal(_logits(file), _logits(folder))


def test_longrope_factors_are_read_from_their_tensors(
    make_checkpoint: Write, tmp_path: Path
) -> None:
    """Phi-3's, for contexts as long as trained and for longer ones."""
    short, long = [1.0 + 0.1 * i for i in range(8)], [1.0 + i for i in range(8)]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    rope |= {"short_factor": short, "long_factor": long}
    folder = make_checkpoint(
        family="Phi3",
        rope_parameters=rope,
        original_max_position_embeddings=64,
        sliding_window=None,
    )
    wanted = read_model_config(folder).rope
    factor = inverse_frequencies(wanted, 16)[1]
    more = {
        "phi3.rope.scaling.original_context_length": 64,
        "phi3.rope.scaling.attn_factor": factor,
    }
    beside = {
        f"rope_factors_{name}.weight": np.array(values, np.float32)
        for name, values in (("short", short), ("long", long))
    }
    file = write_gguf(folder, tmp_path / "m.gguf", more=more, beside=beside)
    for positions in (64, 65):
        theirs, ours = (
            inverse_frequencies(rope, 16, positions)
            for rope in (wanted, read_model_config(file).rope)
        )
        assert torch.allclose(ours[0], theirs[0])
        assert ours[1] == pytest.approx(theirs[1])
    assert torch.allclose(_logits(file), _logits(folder), atol=1e-5)


def test_llama3_frequencies_are_read_from_their_tensor(
    make_checkpoint: Write, tmp_path: Path
) -> None:
    """Llama 3.1's smoothing comes as what each pair's angle is divided by."""
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
    rope |= {"rope_type": "llama3", "original_max_position_embeddings": 64}
    folder = make_checkpoint(rope_parameters=rope)
    plain = write_gguf(folder, tmp_path / "plain.gguf")
    smoothed, _ = inverse_frequencies(read_model_config(folder).rope, 16)
    unscaled, _ = inverse_frequencies(read_model_config(plain).rope, 16)
    factors = {"rope_freqs.weight": (unscaled / smoothed).numpy()}
    file = write_gguf(folder, tmp_path / "m.gguf", beside=factors)
    assert (_logits(file) - _logits(folder)).abs().max() < 1e-4
    assert not torch.allclose(_logits(plain), _logits(folder), atol=1e-2)
    short = {"rope_freqs.weight": np.ones(3, dtype=np.float32)}
    with pytest.raises(ModelLoadError, match=r"is \[3\] of type F32; we read: \[8\]"):
        read_model_config(write_gguf(folder, tmp_path / "short.gguf", beside=short))


def _rounded_copy(folder: Path, target: Path, kind: str, dtype: torch.dtype) -> Path:
    """The folder with every matrix as a type's blocks stand for it."""
    quantised = GGMLQuantizationType[kind]
    target.mkdir()
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.dim() == 2:
            blocks = gguf.quantize(tensor.numpy(), quantised)
            tensor = torch.from_numpy(gguf.dequantize(blocks, quantised)).to(dtype)
        tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    return target


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_type_gives_the_logits_of_its_numbers(
    kind: str, dtype: torch.dtype, make_checkpoint: Write, tmp_path: Path
) -> None:
    """A folder that holds the same numbers answers the same, bit for bit."""
    folder = make_checkpoint(intermediate_size=128)
    file = write_gguf(folder, tmp_path / "m.gguf", kind)
    rounded = _rounded_copy(folder, tmp_path / "rounded", kind, dtype)
    assert torch.equal(_logits(file), _logits(rounded))


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q5_0", "int8"), ("Q5_1", "int8"), ("Q8_0", "int8")],
)
def test_codes_stay_codes(kind: str, kept: str, make_checkpoint: Write, tmp_path: Path) -> None:
    """Codes and scales become those of a layer in groups: nothing is rounded again."""
    folder = make_checkpoint(intermediate_size=128)
    file = write_gguf(folder, tmp_path / "m.gguf", kind)
    model = load_model(file, device=torch.device("cpu"), dtype=torch.float32)
    assert model.quantization == kept
    assert isinstance(model.layers[0].qkv, GroupQuantLinear)
    assert isinstance(model.head, GroupQuantLinear)
    exact = _logits(_rounded_copy(folder, tmp_path / "exact", kind, torch.float32))
    # Rows are rounded to 16-bit integers, as in any int4 layer on a CPU, embeddings to fp16.
    assert (_logits(file) - exact).abs().max() < 2e-3 * exact.abs().max()


_HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where a block has its fp16 scale, and that of its offsets."""


def _random_blocks(kind: TensorType, seed: int, rows: int, blocks_of_row: int) -> Any:
    """Blocks with any codes and any scales and offsets, also none and such as drown the codes."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * blocks_of_row, kind.nbytes), dtype=np.uint8)
    halves = random.normal(0, 0.01, (len(blocks), 2)).astype(np.float16)
    halves[:3], halves[3:6, 0], halves[6:9, 1] = 0, 0, 0
    halves[9:12] = [6e-8, 1e4]
    for half, at in zip(halves.T, _HALVES[kind.name], strict=False):
        blocks[:, at : at + 2] = half[:, None].copy().view(np.uint8)
    return blocks.reshape(rows, -1)


def _named(kind: str) -> tuple[int, TensorType]:
    return next((number, found) for number, found in TYPES.items() if found.name == kind)


@pytest.mark.parametrize("kind", GROUPS)
def test_codes_are_the_blocks_numbers(kind: str) -> None:
    """Fp32's last bits apart, and those only where a type has offsets."""
    number, tensor_type = _named(kind)
    raw = _random_blocks(tensor_type, number, 64, 6)
    inputs = 6 * tensor_type.elements
    file = _file_of("blk.0.ffn_down.weight", (64, inputs), tensor_type, raw)
    codes = GgufCheckpoint(file).codes(["model.layers.0.mlp.down_proj"], [64], inputs)
    assert isinstance(codes, GroupCodes)
    bits, size = GROUPS[kind]
    assert codes.codes.dtype == (torch.uint8 if bits == 4 else torch.int8)
    assert codes.scales.shape == (64, inputs // size)
    exact = torch.from_numpy(gguf.dequantize(raw, GGMLQuantizationType(number)))
    found = groups(torch.from_numpy(raw), tensor_type)
    largest = found.codes.abs().amax() * found.scales.abs()
    largest += 0 if found.offsets is None else found.offsets.abs()
    error = (dequantise(codes) - exact).view(-1, size).abs().amax(-1)
    assert (error <= 4 * 2.0**-24 * largest.flatten()).all()
    assert (error > 0).any() == (found.offsets is not None)


@pytest.mark.parametrize("kinds", [("Q4_K", "Q4_K", "Q6_K"), ("Q3_K", "Q3_K", "Q5_K")], ids=str)
def test_layers_of_several_types_are_fused_without_loss(kinds: tuple[str, ...]) -> None:
    """As Q4_K_M mixes them: all codes as wide as the widest, in groups as small as the smallest."""
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    tensors, exact = {}, []
    for seed, (part, kind) in enumerate(zip("qkv", kinds, strict=True)):
        number, tensor_type = _named(kind)
        raw = _random_blocks(tensor_type, seed, 16, 2)
        tensors |= _file_of(f"blk.0.attn_{part}.weight", (16, 512), tensor_type, raw).tensors
        exact.append(torch.from_numpy(gguf.dequantize(raw, GGMLQuantizationType(number))))
    file = GgufFile(Path("m.gguf"), (), {"general.architecture": "qwen2"}, tensors)
    codes = GgufCheckpoint(file).codes(names, [16] * 3, 512)
    assert isinstance(codes, GroupCodes)
    assert (codes.codes.dtype, codes.scales.shape) == (torch.int8, (48, 32))
    wanted = torch.cat(exact)
    error = (dequantise(codes) - wanted).abs()
    assert (
        error <= 2.0**-20 * wanted.view(48, 32, 16).abs().amax(-1).repeat_interleave(16, 1)
    ).all()


def test_what_is_fused_with_floats_is_widened(caplog: pytest.LogCaptureFixture) -> None:
    """A layer that is part float, part codes becomes 16-bit floats, and the log says so."""
    tensors = _file_of(
        "blk.0.ffn_gate.weight", (8, 32), _named("F32")[1], np.ones((8, 128), np.uint8)
    ).tensors
    raw = _random_blocks(_named("Q8_0")[1], 0, 8, 1)
    tensors |= _file_of("blk.0.ffn_up.weight", (8, 32), _named("Q8_0")[1], raw).tensors
    checkpoint = GgufCheckpoint(
        GgufFile(Path("m.gguf"), (), {"general.architecture": "qwen2"}, tensors)
    )
    names = [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up")]
    assert checkpoint.codes(names, [8, 8], 32) is None
    taken = [checkpoint.take(f"{name}.weight", (8, 32)).dtype for name in names]
    assert taken == [torch.float32, torch.float16]
    with caplog.at_level(logging.INFO):
        checkpoint.check_all_taken()
    assert "gguf_tensors_widened: to 16-bit floats: 1 of type Q8_0" in caplog.text


def _file_of(
    name: str, shape: tuple[int, ...], kind: TensorType, raw: np.ndarray[Any, Any]
) -> GgufFile:
    return GgufFile(
        Path("m.gguf"),
        (),
        {"general.architecture": "qwen2"},
        {name: Stored(name, shape, kind, raw)},
    )


def test_scales_that_are_no_numbers_are_refused() -> None:
    """A damaged file must not answer with NaN; the tensor is named."""
    layer = "model.layers.0.mlp.down_proj"
    reads: dict[str, Callable[[GgufCheckpoint], Any]] = {
        "Q4_K": lambda checkpoint: checkpoint.codes([layer], [2], 256),
        "Q6_K": lambda checkpoint: checkpoint.codes([layer], [2], 256),
        "Q5_K": lambda checkpoint: checkpoint.take(f"{layer}.weight", (2, 256)),
    }
    for kind in (kind for kind in TYPES.values() if kind.name in reads):
        raw = np.full((2, kind.nbytes), 0x7E, dtype=np.uint8)
        checkpoint = GgufCheckpoint(_file_of("blk.0.ffn_down.weight", (2, 256), kind, raw))
        with pytest.raises(ModelLoadError, match=r"'blk\.0\.ffn_down\.weight' holds what are no"):
            reads[kind.name](checkpoint)


def _blocks(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Q6_K by chance, with small scales: there is no quantiser of it in Python."""
    rows, inputs = values.shape
    random = np.random.default_rng(len(name))
    raw = random.integers(0, 256, (rows, inputs // 256, 210), dtype=np.uint8)
    raw[..., 208:] = np.array([0.002], dtype=np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def test_blocks_of_256_serve_whole_models(make_checkpoint: Write, tmp_path: Path) -> None:
    """A model in Q6_K answers as a folder of what its blocks stand for, queries' rows in order."""
    folder = make_checkpoint(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    file = write_gguf(folder, tmp_path / "m.gguf", "Q6_K", blocks=_blocks)
    inner = load_model(file, device=torch.device("cpu"), dtype=torch.float32)
    key = "model.layers.0.self_attn.q_proj.weight"
    shape = load_file(folder / "model.safetensors")[key].shape
    stored = _blocks("blk.0.attn_q.weight", np.empty(tuple(shape), dtype=np.float32))
    exact = torch.from_numpy(gguf.dequantize(stored, GGMLQuantizationType.Q6_K))
    heads = exact.view(4, -1, 2, 256).transpose(1, 2).reshape(exact.shape)
    qkv = inner.layers[0].qkv
    assert isinstance(qkv, GroupQuantLinear)
    kept = dequantise(qkv.weight)
    assert torch.equal(kept[: len(heads)], heads)
    assert _logits(file).isfinite().all()


@pytest.fixture(scope="module")
def tiny_file(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a file, without a tokenizer."""
    return write_gguf(tiny_llama, tmp_path_factory.mktemp("file") / "m.gguf")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"general.architecture": "bert"}, "give a backend of kind 'encoder'"),
    "architecture": ({"general.architecture": "mamba"}, "is of architecture 'mamba'; we serve"),
    "rope_part": ({"llama.rope.dimension_count": 8}, "8 of a head's 16 numbers are rotated"),
    "rope_type": (
        {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0},
        "scales angles by 'longrope'",
    ),
    "values": ({"llama.attention.value_length": 8}, "keys have 16 numbers and values 8"),
    "layers": ({"llama.feed_forward_length": [112, 64]}, "differs between layers"),
    "eps": ({"llama.attention.layer_norm_rms_epsilon": "small"}, "'small'"),
    "no_layers": ({"llama.block_count": 0}, "num_hidden_layers is 0"),
    "countless_layers": ({"llama.block_count": 2**31}, "at most 21 can be"),
    "countless_tokens": ({"llama.context_length": 2**32 - 1}, "at most 16777216 can be"),
    "more_layers": ({"llama.block_count": 3}, "has no tensor 'blk.2.attn_norm.weight'"),
    "fewer_layers": ({"llama.block_count": 1}, "does not use"),
    "shape": ({"llama.embedding_length": 32}, "but its metadata ask for"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(
    case: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """Each refusal names the file and what it is about."""
    metadata, words = REFUSED[case]
    file = write_gguf(tiny_llama, tmp_path / "m.gguf", more=metadata)
    with pytest.raises(ModelLoadError, match=words) as caught:
        load_model(file, device=torch.device("cpu"), dtype=torch.float32)
    assert str(file) in str(caught.value)


def test_missing_tensors_and_keys_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    """By the name that they have in the file."""
    file = write_gguf(tiny_llama, tmp_path / "m.gguf", leave_out=("blk.1.ffn_norm.weight",))
    with pytest.raises(ModelLoadError, match=r"no tensor 'blk\.1\.ffn_norm\.weight'"):
        load_model(file, device=torch.device("cpu"), dtype=torch.float32)
    file = write_gguf(tiny_llama, tmp_path / "n.gguf", leave_out=("token_embd.weight",))
    with pytest.raises(ModelLoadError, match=r"token_embd\.weight"):
        read_model_config(file)


def test_parts_give_the_logits_of_the_whole(tiny_llama: Path, tiny_file: Path) -> None:
    """A model split over several files is one."""
    first = write_gguf(tiny_llama, tiny_file.with_name("split.gguf"), parts=5)
    assert first.name.startswith("split-00001-of-0000")
    assert torch.equal(_logits(first), _logits(tiny_file))
    assert revision(first) != revision(tiny_file)


def test_file_resolves_and_tells_what_it_is(tiny_file: Path, tiny_llama: Path) -> None:
    """Its path is its name as a model; `models inspect` reads it; a folder of files says which."""
    assert model_folder(str(tiny_file)) == tiny_file
    facts, folder = inspect_model(str(tiny_file)), inspect_model(str(tiny_llama))
    same = ("architecture", "parameters", "layers", "hidden_size", "vocab_size", "context_tokens")
    assert {key: facts[key] for key in same} == {key: folder[key] for key in same}
    assert facts["bytes_on_disk"] == tiny_file.stat().st_size
    assert (facts["quantization"], facts["tensor_types"]) == (None, {"F32": 21})
    with pytest.raises(ModelLoadError, match="name one of them"):
        model_folder(str(tiny_file.parent))
    with pytest.raises(ModelLoadError, match=r"is a \.gguf file"):
        quantize_folder(str(tiny_file), tiny_file.parent / "smaller", "int8")


def test_sampling_defaults_of_the_file_count(tiny_llama: Path, tmp_path: Path) -> None:
    """What its makers wrote as general.sampling; vllm's way leaves it alone."""
    more = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7}
    file = write_gguf(tiny_llama, tmp_path / "m.gguf", more=more)
    assert default_sampling(file) == SamplingParams(temperature=0.5, top_k=7)
    assert default_sampling(file, "vllm") == SamplingParams()


def test_revision_of_a_file_changes_with_its_bytes(tiny_file: Path, tmp_path: Path) -> None:
    """As a folder's does."""
    copy = tmp_path / tiny_file.name
    data = bytearray(tiny_file.read_bytes())
    copy.write_bytes(data)
    assert revision(copy) == revision(tiny_file)
    data[-5] ^= 1
    copy.write_bytes(data)
    assert revision(copy) != revision(tiny_file)
