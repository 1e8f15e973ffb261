"""Write a model as a Hugging Face Llama folder: `python -m backends.bundled.export SOURCE FOLDER`.

SOURCE is a training checkpoint, or a folder written here before. int8 follows the layout of
compressed-tensors ("int-quantized"); bfloat16 and float32 load in `transformers` as they are.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import msgspec
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from backends.bundled.checkpoint import Progress, read_checkpoint
from backends.bundled.config import ModelSpec
from backends.bundled.curve import write_training_record
from backends.bundled.errors import ExportError, RecipeError
from backends.bundled.load import load_model
from backends.bundled.quantize import SCALE_SUFFIX, quantize_int8
from backends.bundled.tokenizer import (
    BOS_ID,
    EOS_ID,
    IM_END_ID,
    PAD_ID,
    load_tokenizer,
    write_json,
    write_tokenizer,
)

StoredDtype = Literal["int8", "bfloat16", "float32"]
QUANTIZATION_CONFIG: Final = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    },
    "ignore": ["lm_head"],
}


def hf_config(spec: ModelSpec, dtype: StoredDtype) -> dict[str, Any]:
    """Return `config.json` in the keys that transformers 4 and 5 both read."""
    float_dtype = "float32" if dtype == "float32" else "bfloat16"
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{k: v for k, v in msgspec.to_builtins(spec).items() if k != "name"},
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": [IM_END_ID, EOS_ID],
        "pad_token_id": PAD_ID,
        "dtype": float_dtype,
        "torch_dtype": float_dtype,
    }
    if dtype == "int8":
        config["quantization_config"] = QUANTIZATION_CONFIG
    return config


def stored_tensors(state: dict[str, Tensor], dtype: StoredDtype) -> dict[str, Tensor]:
    """Name and convert the tensors of a training model for the folder."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = f"model.{name}"
        if dtype == "int8" and name.endswith("_proj.weight"):
            tensors[key], tensors[key + SCALE_SUFFIX] = quantize_int8(tensor)
        else:
            kept = torch.float32 if dtype == "float32" else torch.bfloat16
            tensors[key] = tensor.to(kept).contiguous()
    return tensors


def write_model(
    spec: ModelSpec,
    state: dict[str, Tensor],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    dtype: StoredDtype = "int8",
) -> None:
    """Write weights, config and tokenizer; a reader never sees half of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "model.safetensors.new"
    save_file(stored_tensors(state, dtype), fresh, metadata={"format": "pt"})
    write_json(folder / "config.json", hf_config(spec, dtype))
    write_tokenizer(tokenizer, folder)
    fresh.chmod(0o644)
    fresh.replace(folder / "model.safetensors")


def export_model(
    source: Path, tokenizer: Tokenizer | None, folder: Path, *, dtype: StoredDtype = "int8"
) -> None:
    """Write the model of a checkpoint file or of a model folder to `folder`.

    Raises:
        ExportError: a checkpoint was given without a tokenizer, or the source does not fit.
    """
    if source.is_dir():
        model, own = load_model(source)
        write_model(model.spec, model.state_dict(), tokenizer or own, folder, dtype=dtype)
        return
    state = read_checkpoint(source)
    if tokenizer is None:
        raise ExportError(
            f"checkpoint {str(source)!r} has no tokenizer; name its tokenizer.json with --tokenizer"
        )
    spec = msgspec.convert(state["spec"], ModelSpec)
    write_model(spec, state["model"], tokenizer, folder, dtype=dtype)
    progress = msgspec.convert(state["progress"], Progress)
    write_training_record(progress, folder, name=spec.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m backends.bundled.export", description=__doc__)
    parser.add_argument("source", type=Path, help="checkpoint.pt, or a model folder")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--dtype", choices=get_args(StoredDtype), default="int8")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, for a checkpoint")
    args = parser.parse_args(argv)
    try:
        tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
        export_model(args.source, tokenizer, args.folder, dtype=cast(StoredDtype, args.dtype))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
