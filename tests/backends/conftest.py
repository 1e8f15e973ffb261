"""Random small Llama checkpoints, made by transformers, for tests of everything that loads one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

MakeCheckpoint = Callable[..., Path]

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Return a function that writes a random model as a Hugging Face folder and names the folder.

    Keywords override the shape; `family`, `seed` and `save` (of `save_pretrained`) are its own.
    """

    def make(
        *,
        seed: int = 0,
        save: dict[str, Any] | None = None,
        family: str = "Llama",
        **overrides: Any,
    ) -> Path:
        import transformers

        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp(family.lower())
        whole = getattr(transformers, f"{family}Config")  # of text and images, where there are both
        kind = getattr(transformers, f"{family}TextConfig", whole)
        config = kind(**{**SHAPE, **overrides})
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder, **(save or {}))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_checkpoint: MakeCheckpoint) -> Path:
    """Return the folder of a random two-layer Llama without a tokenizer."""
    return make_checkpoint()
