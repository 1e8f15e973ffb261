"""`headgate quantize`: the copy loads, and holds what rounding at load would make."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_tokenizers import save_folder

from backends import quantize as command
from backends.contract import SamplingParams
from backends.layers.coded_linear import GroupQuantLinear
from backends.llm import LLM
from backends.models.registry import Model, load_model


def _load(folder: Path, quantization: str | None = None) -> Model:
    return load_model(
        folder, device=torch.device("cpu"), dtype=torch.float32, quantization=quantization
    )


@pytest.mark.parametrize("method", ["int8", "int4", "fp8"])
def test_quantized_copy_answers_and_is_smaller(
    method: str,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every method writes a folder that serves; what it reports is so."""
    source = save_folder(make_checkpoint(seed=5, save={"max_shard_size": "100KB"}))
    target = tmp_path / "small"
    assert command.main([str(source), str(target), "--method", method, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layers"] == 2 * 7 + (method == "int8")
    assert told["bytes_after"] < told["bytes_before"]
    assert 0 < told["relative_error"] < (0.12 if method == "int4" else 0.04)
    small = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    assert small == told["bytes_after"]
    llm = LLM(model=str(target), max_num_seqs=2)
    [answer] = llm.generate(["Hello"], SamplingParams(max_tokens=5, ignore_eos=True))
    assert len(answer.outputs[0].token_ids) == 5


def test_int8_copy_is_what_rounding_at_load_makes(tiny_llama: Path, tmp_path: Path) -> None:
    """Bit for bit the same logits."""
    command.quantize_folder(str(tiny_llama), tmp_path / "small", "int8")
    stored, at_load = _load(tmp_path / "small"), _load(tiny_llama, "int8")
    x = torch.randn(3, 64)
    for ours, theirs in (
        (stored.layers[1].qkv, at_load.layers[1].qkv),
        (stored.head, at_load.head),
    ):
        assert torch.equal(ours(x), theirs(x))


def test_int4_groups_can_be_made_smaller(tiny_llama: Path, tmp_path: Path) -> None:
    """More scales, less error; layers that no group divides stay plain, and are named."""
    coarse = command.quantize_folder(str(tiny_llama), tmp_path / "coarse", "int4", 64)
    fine = command.quantize_folder(str(tiny_llama), tmp_path / "fine", "int4", 16)
    assert coarse.group_size == 16, "of 64 and 112 inputs"
    assert fine.relative_error == coarse.relative_error
    qkv = _load(tmp_path / "fine").layers[0].qkv
    assert isinstance(qkv, GroupQuantLinear)
    assert qkv.weight.scales.shape == (128, 4)


def test_quantize_refuses_what_would_lose(tiny_llama: Path, tmp_path: Path) -> None:
    """A folder with files is not written over, codes are not rounded again."""
    target = tmp_path / "small"
    arguments = [str(tiny_llama), str(target), "--method"]
    assert command.main([*arguments, "int8"]) == 0
    before = load_file(target / "model.safetensors")
    assert command.main([*arguments, "fp8"]) == 2
    assert command.main([str(target), str(tmp_path / "again"), "--method", "int4"]) == 1
    grouped = [str(tiny_llama), str(tmp_path / "x"), "--method", "fp8", "--group-size", "16"]
    assert command.main(grouped) == 2
    after = load_file(target / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["small"]
