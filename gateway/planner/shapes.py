"""What a model weighs: its shape from a folder's config.json, a .gguf file, or a size ("70B")."""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.planner.errors import PlanError

if TYPE_CHECKING:
    from backends.models.families import Family

WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.53}
"""Bytes of one weight of a linear layer; int4 with one 16-bit scale and 4-bit zero per 128."""


class Experts(Struct, frozen=True, kw_only=True):
    """The mixtures of experts of a decoder."""

    layers: int
    """That have one; the others have a dense block."""
    count: int
    """Experts of each."""
    per_token: int
    intermediate: int

    def read(self, tokens: float) -> float:
        """How many of a layer's experts a step of so many tokens reads on average, if its router
        likes all of them alike."""
        missed: float = (1.0 - self.per_token / self.count) ** tokens
        return self.count * (1.0 - missed)


class ModelShape(Struct, frozen=True, kw_only=True, dict=True):
    """The numbers of a decoder that memory and time depend on."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    experts: Experts | None = None
    context_tokens: int | None = None
    """Most of a request; None: not known, of sizes."""

    @cached_property
    def layer_params(self) -> int:
        """Weights of all layers' linears."""
        return round(self._layer_params(self.experts.count if self.experts else 0))

    @cached_property
    def active_layer_params(self) -> int:
        """Those that one token is multiplied with."""
        return round(self._layer_params(self.experts.per_token if self.experts else 0))

    def _layer_params(self, experts: float) -> float:
        """With so many experts of each mixture."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mixed = self.experts
        dense = self.layers - (mixed.layers if mixed else 0)
        params = float(self.layers * attention + dense * 3 * self.hidden * self.intermediate)
        if mixed:
            router, expert = self.hidden * mixed.count, 3 * self.hidden * mixed.intermediate
            params += mixed.layers * (router + experts * expert)
        return params

    @property
    def params(self) -> int:
        """All weights."""
        return self.layer_params + self.hidden * self.vocab * (1 if self.tied else 2)

    @property
    def active_params(self) -> int:
        """All but the experts that a token does not meet."""
        return self.params - self.layer_params + self.active_layer_params

    def weight_bytes(self, precision: str) -> float:
        """Bytes in memory; embedding and head stay at 16 bits under quantisation."""
        wide = max(2.0, WEIGHT_BYTES[precision]) if precision != "fp32" else 4.0
        outside = self.params - self.layer_params
        return self.layer_params * WEIGHT_BYTES[precision] + outside * wide

    def read_bytes(self, precision: str, tokens: float = 1.0) -> float:
        """Bytes of weights that a step of so many tokens reads: of the embedding only a few rows,
        of experts those that somebody meets."""
        wide = 4.0 if precision == "fp32" else 2.0
        layers = self.layer_params
        if self.experts:
            layers = round(self._layer_params(self.experts.read(tokens)))
        return layers * WEIGHT_BYTES[precision] + self.hidden * self.vocab * wide

    def kv_bytes_per_token(self, kv_bytes: float = 2.0) -> float:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * kv_bytes

    def flops_per_token(self) -> float:
        """Operations of one token, without what it attends to."""
        return 2.0 * (self.active_layer_params + self.hidden * self.vocab)

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
_MIXTURES = {
    # name: layers, hidden, heads, kv_heads, head_dim, experts, per token, intermediate, vocab
    "8X7B": (32, 4096, 32, 8, 128, 8, 2, 14_336, 32_000),
    "8X22B": (56, 6144, 48, 8, 128, 8, 2, 16_384, 32_000),
    "30B-A3B": (48, 2048, 32, 4, 128, 128, 8, 768, 151_936),
    "235B-A22B": (94, 4096, 64, 4, 128, 128, 8, 1536, 151_936),
}
"""Mixtral and Qwen3, from their published config.json."""
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([bBmM])$")


def is_name(model: str) -> bool:
    """Whether a model is meant by its size or name, so that nothing has to be read for it."""
    return _SIZE.match(model) is not None or model.upper() in _MIXTURES


def shape_of(model: str) -> ModelShape:
    """A model's shape.

    Args:
        model: a folder in the Hugging Face layout, a .gguf file, bundled:NAME, a size (70B, 500M),
            or a mixture by its name (30B-A3B, 235B-A22B, 8x7B, 8x22B).

    Raises:
        PlanError: none of these, or a folder or file of no decoder that we know.
    """
    size = _SIZE.match(model.strip())
    if size is not None:
        billions = float(size.group(1)) * (1.0 if size.group(2) in "bB" else 1e-3)
        return _of_size(model.strip(), billions)
    if (mixture := _MIXTURES.get(model.strip().upper())) is not None:
        return _of_mixture(model.strip(), mixture)
    return _of_files(model)


def _of_mixture(name: str, row: tuple[int, ...]) -> ModelShape:
    layers, hidden, heads, kv_heads, head_dim, count, per_token, intermediate, vocab = row
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab=vocab,
        experts=Experts(layers=layers, count=count, per_token=per_token, intermediate=intermediate),
    )


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
    return replace(shape, layers=max(1, round(layers * wanted / shape.layer_params)))


def _of_files(model: str) -> ModelShape:
    from backends.bundled import UnknownBundledModelError, bundled_path
    from backends.errors import ModelLoadError
    from backends.gguf.config import config_json
    from backends.gguf.file import is_gguf, open_gguf

    try:
        bundled = model.startswith("bundled:")
        path = bundled_path(model.removeprefix("bundled:")) if bundled else Path(model)
        if is_gguf(path):
            return _of_config(model, config_json(open_gguf(path)))
        return _of_config(model, json.loads((path / "config.json").read_bytes()))
    except (UnknownBundledModelError, ModelLoadError) as error:
        raise PlanError(str(error)) from None
    except OSError:
        raise PlanError(
            f"model {model!r}: no size such as 8B, no folder with a config.json, no .gguf file"
        ) from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise PlanError(f"{model}: no decoder's config.json ({error!r})") from None


def _of_config(name: str, raw: Mapping[str, Any]) -> ModelShape:
    from backends.models.families import read_family, text_config

    raw = text_config(raw)
    layers = int(raw["num_hidden_layers"])
    family = read_family(raw, name, layers)
    heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or hidden // heads),
        intermediate=int(raw["intermediate_size"]),
        vocab=int(raw["vocab_size"]),
        tied=bool(raw.get("tie_word_embeddings", family.norms_less_one)),
        experts=_experts(family),
        context_tokens=int(raw.get("max_position_embeddings") or 0) or None,
    )


def _experts(family: "Family") -> Experts | None:
    mixtures = [one for one in family.experts if one is not None]
    if not mixtures:
        return None
    return Experts(
        layers=len(mixtures),
        count=mixtures[0].count,
        per_token=mixtures[0].per_token,
        intermediate=mixtures[0].intermediate_size,
    )
