"""Checkpoints that others quantised: every layout gives the numbers it stands for."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from backends.errors import ModelLoadError
from backends.layers.coded_linear import GroupQuantLinear, ScaledLinear, coded_linear
from backends.layers.linear import Int8Linear, Linear
from backends.models.registry import Model, load_model
from backends.quantization.codes import Int8Codes, dequantise, stack
from backends.quantization.fp8 import quantize_fp8
from backends.quantization.int4 import group_size, quantize_int4
from backends.quantization.int8 import quantize_int8
from kernels.quant_linear.reference import round_rows

GROUP = 16
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ's: which channel the i-th four bits of a word hold."""
CPU = torch.device("cpu")


def _load(folder: Path, **options: Any) -> Model:
    return load_model(folder, device=CPU, dtype=torch.float32, **options)


def _words(codes: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """[R, 8 * C] of 0..15 -> [R, C] int32, the i-th four bits of a word from column order[i]."""
    columns = codes.long().view(codes.shape[0], -1, 8)
    words = sum(columns[..., place] << 4 * bits for bits, place in enumerate(order))
    assert isinstance(words, Tensor)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _codes(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scales and zero points [N, G] near a weight; scales that fp16 holds."""
    quantised = quantize_int4(weight, GROUP)
    assert quantised.zeros is not None
    codes = torch.stack((quantised.codes & 15, quantised.codes >> 4), dim=-1).flatten(1)
    return codes, quantised.scales.half().float(), quantised.zeros.clamp(min=1)


def _compressed(name: str, codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}.weight_packed": _words(codes),
        f"{name}.weight_scale": scales.half(),
        f"{name}.weight_shape": torch.tensor(codes.shape),
        f"{name}.weight_zero_point": _words(zeros.t().contiguous()).t().contiguous(),
    }


def _gptq(name: str, codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    inputs = codes.shape[1]
    return {
        f"{name}.qweight": _words(codes).t().contiguous(),
        f"{name}.qzeros": _words(zeros.t().contiguous() - 1),
        f"{name}.scales": scales.t().contiguous().half(),
        f"{name}.g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }


def _awq(name: str, codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}.qweight": _words(codes.t().contiguous(), AWQ_ORDER),
        f"{name}.qzeros": _words(zeros.t().contiguous(), AWQ_ORDER),
        f"{name}.scales": scales.t().contiguous().half(),
    }


LAYOUTS: dict[str, tuple[Callable[..., dict[str, Tensor]], dict[str, Any]]] = {
    "compressed-tensors": (
        _compressed,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "strategy": "group",
                        "group_size": GROUP,
                        "symmetric": False,
                    }
                }
            },
        },
    ),
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False}),
    "awq": (_awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
}


def _rewrite(folder: Path, config: dict[str, Any], write: Callable[..., Any]) -> dict[str, Tensor]:
    """Store each projection as `write` has it; return the weights that it then stands for."""
    tensors, exact, stored = load_file(folder / "model.safetensors"), {}, {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        layer = name.removesuffix(".weight")
        coded, exact[layer] = write(layer, tensor)
        stored.update(coded)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    return exact


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint to be rewritten."""
    return copytree(tiny_llama, tmp_path / "copy")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_int4_checkpoints_of_every_layout_stand_for_their_numbers(layout: str, copy: Path) -> None:
    """Codes, scales and zero points find their places: each layer is code less zero, scaled."""
    write, config = LAYOUTS[layout]

    def rewrite(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        codes, scales, zeros = _codes(weight)
        spread = [t.repeat_interleave(GROUP, 1).float() for t in (scales, zeros)]
        return write(name, codes, scales, zeros), (codes.float() - spread[1]) * spread[0]

    exact = _rewrite(copy, config, rewrite)
    model = _load(copy)
    assert model.quantization == "int4"
    assert isinstance(model.head, Linear)
    for index, layer in enumerate(model.layers):
        qkv = layer.qkv
        assert isinstance(qkv, GroupQuantLinear)
        parts = [exact[f"model.layers.{index}.self_attn.{part}_proj"] for part in "qkv"]
        weight = torch.cat(parts)
        restored = dequantise(qkv.weight)
        torch.testing.assert_close(restored, weight, rtol=0, atol=1e-6)
        # always the same: about one number in 100,000 lies so near a tie that it rounds either way
        x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(index))
        rows = x if qkv.packed is None else round_rows(x)
        torch.testing.assert_close(qkv(x), rows @ weight.T, rtol=1e-5, atol=2e-5)


def _bytes_as_words(codes: Tensor) -> Tensor:
    """[R, 4 * C] of 0..255 -> [R, C] int32, the first in the lowest byte."""
    return codes.to(torch.uint8).contiguous().view(torch.int32)


def _gptq_8(name: str, codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    groups = codes.shape[1] // scales.shape[1]
    return {
        f"{name}.qweight": _bytes_as_words(codes).t().contiguous(),
        f"{name}.qzeros": _bytes_as_words(zeros.t() - 1),
        f"{name}.scales": scales.t().contiguous().half(),
        f"{name}.g_idx": torch.arange(codes.shape[1], dtype=torch.int32) // groups,
    }


def _compressed_8(name: str, codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    stored = {
        f"{name}.weight_packed": _bytes_as_words(codes),
        f"{name}.weight_scale": scales.half(),
        f"{name}.weight_shape": torch.tensor(codes.shape),
    }
    if (zeros != 128).any():
        padded = functional.pad(zeros.t(), (0, -zeros.shape[0] % 4))
        stored[f"{name}.weight_zero_point"] = _bytes_as_words(padded).t().contiguous()
    return stored


def _packed_8(strategy: str, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "int", "strategy": strategy, "symmetric": symmetric}
    weights |= {"group_size": GROUP} if strategy == "group" else {}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }


@pytest.mark.parametrize(
    ("write", "config", "group", "middle"),
    [
        (_gptq_8, {"quant_method": "gptq", "bits": 8, "group_size": GROUP}, GROUP, 128),
        (_gptq_8, {"quant_method": "gptq", "bits": 8, "group_size": GROUP}, GROUP, None),
        (_compressed_8, _packed_8("group", True), GROUP, 128),
        (_compressed_8, _packed_8("group", False), GROUP, None),
        (_compressed_8, _packed_8("channel", True), None, 128),
    ],
    ids=["gptq sym", "gptq", "packed sym", "packed", "packed by channel"],
)
def test_checkpoints_of_8_bits_in_words_stand_for_their_numbers(
    write: Callable[..., dict[str, Tensor]],
    config: dict[str, Any],
    group: int | None,
    middle: int | None,
    copy: Path,
) -> None:
    """Bytes of 0 to 255 about zero points near 128, in groups or by channel."""
    generator = torch.Generator().manual_seed(4)

    def rewrite(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        groups = weight.shape[1] // (group or weight.shape[1])
        spread = weight.view(len(weight), groups, -1).abs().amax(-1)
        scales = (spread / 100).half().float()
        zeros = torch.randint(110, 146, scales.shape, generator=generator)
        if middle is not None:
            zeros.fill_(middle)
        wide = [t.repeat_interleave(weight.shape[1] // groups, 1) for t in (scales, zeros)]
        codes = (weight / wide[0] + wide[1]).round().clamp(0, 255)
        return write(name, codes, scales, zeros), (codes - wide[1]) * wide[0]

    exact = _rewrite(copy, config, rewrite)
    model = _load(copy)
    assert model.quantization == "int8"
    for index, layer in enumerate(model.layers):
        assert isinstance(layer.qkv, GroupQuantLinear)
        assert (layer.qkv.weight.zeros is None) == (middle is not None)
        parts = [exact[f"model.layers.{index}.self_attn.{part}_proj"] for part in "qkv"]
        restored = dequantise(layer.qkv.weight)
        torch.testing.assert_close(restored, torch.cat(parts), rtol=0, atol=1e-6)


def test_gptq_with_scattered_groups_is_refused(copy: Path) -> None:
    """Act-order permutes the inputs of a group: read in order the answers would be wrong."""
    write, config = LAYOUTS["gptq"]

    def rewrite(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        tensors = write(name, *_codes(weight))
        tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"].flip(0)
        return tensors, weight

    _rewrite(copy, config, rewrite)
    with pytest.raises(ModelLoadError, match="scatters the groups"):
        _load(copy)


@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_fp8_checkpoints_load(strategy: str, copy: Path) -> None:
    """One scale per channel or per layer; on a CPU the weights are plain again."""
    per_tensor = strategy == "tensor"
    weights = {"num_bits": 8, "type": "float", "strategy": strategy}
    config = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "g": {"weights": weights, "input_activations": {"num_bits": 8, "dynamic": True}}
        },
    }

    def rewrite(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        scales = weight.abs().amax() / 448 if per_tensor else quantize_fp8(weight).scales[:, None]
        codes = (weight / scales).to(torch.float8_e4m3fn)
        stored = {f"{name}.weight": codes, f"{name}.weight_scale": scales.reshape(-1, 1)}
        if per_tensor:
            stored[f"{name}.weight_scale"] = scales.reshape(1)
        return stored, codes.float() * scales

    exact = _rewrite(copy, config, rewrite)
    output = _load(copy).layers[1].output
    assert isinstance(output, Linear)
    torch.testing.assert_close(output.weight, exact["model.layers.1.self_attn.o_proj"])


def test_w8a8_checkpoints_keep_their_codes(copy: Path) -> None:
    """Where no tensor cores multiply 8 bits, activations keep 16."""
    config = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "g": {
                "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
                "input_activations": {"num_bits": 8, "dynamic": True},
            }
        },
    }

    def rewrite(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        codes, scales = quantize_int8(weight)
        return {f"{name}.weight": codes, f"{name}.weight_scale": scales[:, None]}, codes

    codes = _rewrite(copy, config, rewrite)
    output = _load(copy).layers[0].output
    assert isinstance(output, Int8Linear)
    assert torch.equal(output.codes, codes["model.layers.0.self_attn.o_proj"])


def test_scaled_layers_round_activations_as_their_op_does() -> None:
    """W8A8 and fp8 layers, as GPUs run them: near the plain product, by their scheme's steps."""
    weight, x = torch.randn(24, 64), torch.randn(5, 64)
    exact = x @ weight.T
    for codes, most in (
        (Int8Codes(*quantize_int8(weight), True), 0.02),
        (quantize_fp8(weight), 0.06),
    ):
        error = (ScaledLinear(codes, None)(x) - exact).norm() / exact.norm()
        assert 0 < error < most


def test_int4_at_load_keeps_the_head_at_8_bits(tiny_llama: Path) -> None:
    """Layers get groups that divide their inputs, the head int8, and answers stay near."""
    exact, rounded = _load(tiny_llama), _load(tiny_llama, quantization="int4")
    assert rounded.quantization == "int4"
    assert isinstance(rounded.head, Int8Linear)
    plain, small = exact.layers[0].qkv, rounded.layers[0].qkv
    assert isinstance(plain, Linear)
    assert isinstance(small, GroupQuantLinear)
    error = dequantise(small.weight) - plain.weight
    assert error.norm() / plain.weight.norm() < 0.12


@pytest.mark.parametrize(("inputs", "group"), [(4096, 128), (448, 64), (1216, 64), (40, None)])
def test_groups_divide_the_inputs(inputs: int, group: int | None) -> None:
    """The largest of the known sizes that does, or none."""
    assert group_size(inputs) == group


def test_int4_keeps_zeros_and_one_sided_groups() -> None:
    """Zero is a code wherever it may matter: zeros stay zeros, all-positive groups stay so."""
    weight = torch.stack((torch.zeros(32), torch.rand(32) + 0.5, -torch.rand(32)))
    restored = dequantise(quantize_int4(weight, 16))
    assert restored[0].abs().max() == 0
    assert (restored[1] > 0).all()
    assert (restored[2] <= 0).all()
    assert (restored - weight).abs().max() < 0.11


def test_stacked_layers_are_their_parts() -> None:
    """Fusing by rows changes no number, in any scheme."""
    parts = [torch.randn(n, 32) for n in (8, 16)]
    for make in (
        lambda w: quantize_int4(w, 16),
        quantize_fp8,
        lambda w: Int8Codes(*quantize_int8(w)),
    ):
        coded = [make(part) for part in parts]
        together = torch.cat([dequantise(part) for part in coded])
        assert torch.equal(dequantise(stack(coded)), together)
        layer = coded_linear(stack(coded), None, dtype=torch.float32)
        assert layer(torch.randn(2, 32)).shape == (2, 24)
