"""Which class serves which architecture, and the one function that loads a folder."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

from backends.errors import ModelLoadError
from backends.gguf.checkpoint import GgufCheckpoint
from backends.gguf.file import is_gguf, open_gguf
from backends.models.config import ModelConfig, read_model_config
from backends.models.llama import Llama
from backends.models.loader import Checkpoint, WeightReader
from backends.quantization.schemes import QuantizeAtLoad

Model = Llama
ARCHITECTURES: Final[dict[str, type[Llama]]] = dict.fromkeys(
    (
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "GraniteForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
    ),
    Llama,
)
"""All of one shape; `families` says how they differ."""


def load_model(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: QuantizeAtLoad | None = None,
    max_positions: int | None = None,
    config: ModelConfig | None = None,
) -> Model:
    """Load a Hugging Face folder or a .gguf file.

    Args:
        folder: Holds config.json and the safetensors files; or the file.
        device: Where the weights go.
        dtype: Of activations and of weights that are not quantised.
        quantization: how to round the linear weights at load, if they are not stored so already.
        max_positions: Longest context the rotary tables must cover; None: the model's own.
        config: The folder's, where the caller has read it already.

    Raises:
        ModelLoadError: the folder, its architecture or one of its tensors cannot be served.
    """
    config = config or read_model_config(folder)
    kind = ARCHITECTURES.get(config.architecture)
    if kind is None:
        raise ModelLoadError(
            f"{str(folder)!r} is a {config.architecture}; we serve: {', '.join(ARCHITECTURES)}"
        )
    checkpoint = (
        GgufCheckpoint(open_gguf(folder))
        if is_gguf(folder)
        else Checkpoint(folder, config.quantization)
    )
    reader = WeightReader(
        checkpoint,
        device=device,
        dtype=dtype,
        quantize=quantization,
        tied=config.tie_word_embeddings,
    )
    model = kind(config, reader, max_positions=max_positions or config.max_position_embeddings)
    checkpoint.check_all_taken()
    _return_free_memory()
    return model


def _return_free_memory() -> None:
    """Give back what loading took and no longer needs; glibc keeps pieces of up to 32 MB."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
