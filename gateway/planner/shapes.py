"""What a model weighs: its shape from a folder's config.json, or from a size such as "70B"."""

import json
import re
from functools import cached_property
from pathlib import Path

from msgspec import Struct

from gateway.planner.errors import PlanError

WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.53}
"""Bytes of one weight of a linear layer; int4 with one 16-bit scale and 4-bit zero per 128."""


class ModelShape(Struct, frozen=True, kw_only=True, dict=True):
    """The numbers of a dense decoder that memory and time depend on."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    context_tokens: int | None = None
    """Most of a request; None: not known, of sizes."""

    @cached_property
    def layer_params(self) -> int:
        """Weights of all layers' linears."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def params(self) -> int:
        """All weights."""
        return self.layer_params + self.hidden * self.vocab * (1 if self.tied else 2)

    def weight_bytes(self, precision: str) -> float:
        """Bytes in memory; embedding and head stay at 16 bits under quantisation."""
        wide = max(2.0, WEIGHT_BYTES[precision]) if precision != "fp32" else 4.0
        outside = self.params - self.layer_params
        return self.layer_params * WEIGHT_BYTES[precision] + outside * wide

    def read_bytes(self, precision: str) -> float:
        """Bytes of weights that one step reads: of the embedding only a few rows."""
        wide = 4.0 if precision == "fp32" else 2.0
        return self.layer_params * WEIGHT_BYTES[precision] + self.hidden * self.vocab * wide

    def kv_bytes_per_token(self, kv_bytes: float = 2.0) -> float:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * kv_bytes

    def flops_per_token(self) -> float:
        """Operations of one token, without what it attends to."""
        return 2.0 * (self.layer_params + self.hidden * self.vocab)

    @property
    def attention_flops(self) -> float:
        """Operations of one token for each that it attends to."""
        return 4.0 * self.layers * self.heads * self.head_dim


_FAMILY = (
    # size in billions, layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, tied
    (1.2, 16, 2048, 32, 8, 64, 8192, 128_256, True),
    (3.2, 28, 3072, 24, 8, 128, 8192, 128_256, True),
    (8.0, 32, 4096, 32, 8, 128, 14_336, 128_256, False),
    (13.0, 40, 5120, 40, 40, 128, 13_824, 32_000, False),
    (34.0, 48, 8192, 64, 8, 128, 22_016, 32_000, False),
    (70.6, 80, 8192, 64, 8, 128, 28_672, 128_256, False),
    (405.0, 126, 16_384, 128, 8, 128, 53_248, 128_256, False),
)
"""Llama models, from their published config.json; a size between them takes the nearest shape
with its layers scaled."""
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([bBmM])$")


def shape_of(model: str) -> ModelShape:
    """A model's shape.

    Args:
        model: a folder in the Hugging Face layout, bundled:NAME, or a size: 70B, 500M.

    Raises:
        PlanError: neither, or a folder whose config.json is no Llama-shaped decoder's.
    """
    size = _SIZE.match(model.strip())
    if size is not None:
        billions = float(size.group(1)) * (1.0 if size.group(2) in "bB" else 1e-3)
        return _of_size(model.strip(), billions)
    return _of_folder(model)


def _of_size(name: str, billions: float) -> ModelShape:
    if not 0.05 <= billions <= 2000:
        raise PlanError(f"model {name!r}: give a size from 50M to 2000B")
    near = min(_FAMILY, key=lambda row: max(row[0] / billions, billions / row[0]))
    _, layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, tied = near
    shape = ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab=vocab,
        tied=tied,
    )
    outside = shape.params - shape.layer_params
    wanted = billions * 1e9 - outside
    scaled = max(1, round(layers * wanted / shape.layer_params))
    return ModelShape(
        name=name,
        layers=scaled,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab=vocab,
        tied=tied,
    )


def _of_folder(model: str) -> ModelShape:
    from backends.bundled import UnknownBundledModelError, bundled_path

    try:
        bundled = model.startswith("bundled:")
        folder = bundled_path(model.removeprefix("bundled:")) if bundled else Path(model)
    except UnknownBundledModelError as error:
        raise PlanError(str(error)) from None
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
        heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        return ModelShape(
            name=model,
            layers=int(raw["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or hidden // heads),
            intermediate=int(raw["intermediate_size"]),
            vocab=int(raw["vocab_size"]),
            tied=bool(raw.get("tie_word_embeddings", False)),
            context_tokens=int(raw.get("max_position_embeddings") or 0) or None,
        )
    except OSError:
        raise PlanError(
            f"model {model!r}: no size such as 8B, and no folder with a config.json"
        ) from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise PlanError(f"{file}: no Llama-shaped decoder's ({error!r})") from None
