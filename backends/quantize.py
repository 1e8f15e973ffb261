"""Make a smaller copy of a model: `headgate quantize SRC DST --method int8|int4|fp8`.

Linear layers are rounded and written as compressed-tensors, which this engine, vLLM and
transformers read; embeddings and norms stay as they are. The head is rounded with int8 alone.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backends.command import exit_with
from backends.errors import BackendError, ModelLoadError
from backends.gguf.file import is_gguf
from backends.models.config import read_model_config
from backends.models.folder import model_folder
from backends.models.loader import INDEX_FILE, weight_files
from backends.quantization.at_load import quantize
from backends.quantization.codes import Codes, GroupCodes, dequantise
from backends.quantization.int4 import GROUP_SIZES, group_size
from backends.quantization.layouts import as_compressed_tensors
from backends.quantization.schemes import QuantizeAtLoad

_COPIED: Final = (".json", ".jinja", ".model", ".txt")
_RECORDS: Final = ("evaluation.json", "training.json", INDEX_FILE)
"""What was measured of the original says nothing of the copy."""
_LAYERS: Final = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")
_HEAD: Final = "lm_head.weight"


class Outcome(msgspec.Struct, kw_only=True):
    """What came of it."""

    source: str
    target: str
    method: str
    group_size: int | None
    layers: int = 0
    """Linear layers that were rounded."""
    left: list[str] = msgspec.field(default_factory=list)
    """Those that could not be: no group divides their inputs."""
    bytes_before: int = 0
    bytes_after: int = 0
    relative_error: float = 0.0
    """Of all rounded weights: root mean square of the error over that of the weights."""


def quantize_folder(
    source: str, target: Path, method: QuantizeAtLoad, group: int | None = None
) -> Outcome:
    """Write the copy; nothing stays behind where it fails.

    Raises:
        ModelLoadError: the source is no model, or quantised already.
        ValueError: the target holds files.
    """
    folder = model_folder(source)
    if is_gguf(folder):
        raise ModelLoadError(
            f"{source!r} is a .gguf file; give the Hugging Face folder that it was made from"
        )
    config = read_model_config(folder)
    if config.quantization is not None:
        raise ModelLoadError(
            f"{source!r} is quantised already ({config.quantization.scheme}); give the original"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{str(target)!r} exists; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    size = _group_size(folder, group) if method == "int4" else None
    outcome = Outcome(source=source, target=str(target), method=method, group_size=size)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as scratch:
        fresh = Path(scratch) / "model"
        fresh.mkdir()
        _write(folder, fresh, outcome)
        if target.exists():
            target.rmdir()
        fresh.rename(target)
    return outcome


def _write(folder: Path, fresh: Path, outcome: Outcome) -> None:
    squares = [0.0, 0.0]
    index: dict[str, str] = {}
    names = weight_files(folder)
    for name in names:
        tensors: dict[str, Tensor] = {}
        for key, tensor in _tensors(folder / name):
            if not _is_layer(key, outcome.method):
                tensors[key] = tensor.contiguous()
                continue
            codes = _round(tensor, outcome)
            if codes is None:
                outcome.left.append(key.removesuffix(".weight"))
                tensors[key] = tensor.contiguous()
                continue
            outcome.layers += 1
            exact = tensor.float()
            squares[0] += float((dequantise(codes) - exact).square().sum())
            squares[1] += float(exact.square().sum())
            tensors.update(as_compressed_tensors(key.removesuffix(".weight"), codes))
        save_file(tensors, fresh / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
        outcome.bytes_before += (folder / name).stat().st_size
        outcome.bytes_after += (fresh / name).stat().st_size
    if len(names) > 1 or names[0] != "model.safetensors":
        total = {"total_size": outcome.bytes_after}
        (fresh / INDEX_FILE).write_text(json.dumps({"metadata": total, "weight_map": index}))
    outcome.relative_error = float(f"{(squares[0] / max(squares[1], 1e-30)) ** 0.5:.4g}")
    for file in folder.iterdir():
        if file.suffix in _COPIED and file.name not in (*_RECORDS, "config.json"):
            shutil.copy(file, fresh)
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] = _description(outcome)
    (fresh / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt", device="cpu") as opened:
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            yield name, opened.get_tensor(name)


def _is_layer(name: str, method: str) -> bool:
    return name.endswith(_LAYERS) or (name == _HEAD and method == "int8")


def _round(weight: Tensor, outcome: Outcome) -> Codes | None:
    """One layer's codes; None where int4 has no group for its inputs."""
    if outcome.method == "int4" and (
        outcome.group_size is None or weight.shape[1] % outcome.group_size
    ):
        return None
    method = msgspec.convert(outcome.method, QuantizeAtLoad)
    codes = quantize(weight, method, outcome.group_size)
    if isinstance(codes, GroupCodes):  # As it is stored, so that the error is that of the copy.
        return codes._replace(scales=codes.scales.half().float())
    return codes


def _group_size(folder: Path, wanted: int | None) -> int | None:
    """The largest group that divides the inputs of all layers that any divides."""
    sizes = set()
    for name in weight_files(folder):
        with safe_open(folder / name, framework="pt", device="cpu") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no mapping
                if _is_layer(key, "int4"):
                    sizes.add(group_size(opened.get_slice(key).get_shape()[1], wanted))
    return min((size for size in sizes if size is not None), default=None)


def _description(outcome: Outcome) -> Mapping[str, Any]:
    """`quantization_config`, as compressed-tensors has it."""
    common = {"dynamic": False, "observer": None}
    dynamic = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    kinds: dict[str, tuple[str, dict[str, Any], Any]] = {
        "int8": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}, None),
        "fp8": (
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            dynamic,
        ),
        "int4": (
            "pack-quantized",
            {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": outcome.group_size,
                "symmetric": False,
            },
            None,
        ),
    }
    style, weights, inputs = kinds[outcome.method]
    group = {
        "targets": ["Linear"],
        "weights": {"symmetric": True, **weights, **common},
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": style,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [*outcome.left, *([] if outcome.method == "int8" else ["lm_head"])],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="headgate quantize", description=__doc__)
    parser.add_argument("source", help="bundled:NAME, hf:owner/name or a folder")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--method", required=True, choices=get_args(QuantizeAtLoad))
    parser.add_argument(
        "--group-size", type=int, choices=GROUP_SIZES, help="int4: most inputs under one scale"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a sentence")
    arguments = parser.parse_args(argv)
    try:
        if arguments.group_size is not None and arguments.method != "int4":
            raise ValueError(f"--group-size goes with --method int4, not {arguments.method}")
        with torch.inference_mode():
            outcome = quantize_folder(
                arguments.source, arguments.target, arguments.method, arguments.group_size
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (BackendError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(outcome), indent=2))
        return 0
    print(
        f"{outcome.target}: {outcome.layers} layers in {outcome.method}, "
        f"{outcome.bytes_before / 1e6:.1f} MB -> {outcome.bytes_after / 1e6:.1f} MB, "
        f"relative error of the weights {outcome.relative_error:.2%}"
    )
    return 0


if __name__ == "__main__":
    exit_with(main)
