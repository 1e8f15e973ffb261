"""Read a folder that `export.py` wrote back into the training-time model."""

import json
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from backends.bundled.checkpoint import Progress, read_checkpoint
from backends.bundled.config import ModelSpec
from backends.bundled.errors import ExportError
from backends.bundled.model import Llama
from backends.bundled.quantize import SCALE_SUFFIX, dequantize_int8
from backends.bundled.tokenizer import load_tokenizer


def read_spec(folder: Path) -> ModelSpec:
    """Read the shape of a model from its `config.json`.

    Raises:
        ExportError: the file is missing, or is not of this family's shape.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ExportError(
            f"model folder {str(folder)!r} has no readable config.json ({error}); "
            "name a folder that the recipe exported"
        ) from error
    wanted = {name: config[name] for name in ModelSpec.__struct_fields__ if name in config}
    try:
        return msgspec.convert({**wanted, "name": folder.name}, ModelSpec)
    except msgspec.ValidationError as error:
        raise ExportError(
            f"{str(path)!r} is not of this family ({error}); name a folder the recipe exported"
        ) from error


def read_source(source: Path) -> tuple[Llama, Progress | None]:
    """Read the model of a checkpoint, and how it was trained, or that of an exported folder.

    Raises:
        RecipeError: it cannot be read.
    """
    if source.is_dir():
        return load_model(source)[0], None
    state = read_checkpoint(source)
    model = Llama(msgspec.convert(state["spec"], ModelSpec))
    model.load_state_dict(state["model"])
    return model, msgspec.convert(state["progress"], Progress)


def load_model(folder: Path) -> tuple[Llama, Tokenizer]:
    """Load an exported folder in fp32, int8 weights dequantized, and its tokenizer.

    Raises:
        ExportError: the folder is missing something, or its tensors do not fit its config.
    """
    spec, tokenizer = read_spec(folder), load_tokenizer(folder / "tokenizer.json")
    path = folder / "model.safetensors"
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"weights {str(path)!r} cannot be read ({error}); copy or export them again"
        ) from error
    state = {}
    for key, tensor in stored.items():
        scale = stored.get(key + SCALE_SUFFIX)
        if not key.endswith(SCALE_SUFFIX):
            value = tensor.float() if scale is None else dequantize_int8(tensor, scale)
            state[key.removeprefix("model.")] = value
    model = Llama(spec)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ExportError(
            f"weights {str(path)!r} do not fit {str(folder / 'config.json')!r} ({error}); "
            "export the model again"
        ) from error
    return model.eval(), tokenizer
