"""Grow a trained model into a larger shape that, at first, computes the very same thing.

What a smaller model has learned need not be learned again: the new heads, feed-forward rows and
layers begin with outputs of zero, and new channels of the residual stream begin empty.

Source: Chen et al. 2016, "Net2Net"; for transformers Chen et al. 2022, "bert2BERT".
"""

import torch
from torch import Tensor

from backends.bundled.config import ModelSpec
from backends.bundled.errors import CheckpointError
from backends.bundled.model import Llama, init_weights

State = dict[str, Tensor]


def grow(state: State, old: ModelSpec, new: ModelSpec, *, seed: int) -> Llama:
    """Make a model of shape `new` whose logits equal those of `state`, a model of shape `old`.

    All that is written to the residual stream grows by the root of the widths' ratio, so that its
    mean square, empty channels counted, stays what it was; the norms' weights take it back.

    Raises:
        CheckpointError: a dimension would shrink, or heads, vocabulary or angles do not fit.
    """
    _check(old, new)
    model = Llama(new)
    init_weights(model, seed)
    grown = model.state_dict()
    for name in ("embed_tokens.weight", "norm.weight"):
        grown[name].copy_(_widen(name, state[name], grown[name], old, new))
    grown["norm.weight"].div_(_stretch(old, new))  # the head is the embedding, stretched too
    for layer, source in enumerate(layer_sources(old.num_hidden_layers, new.num_hidden_layers)):
        for name in (key for key in grown if key.startswith(f"layers.{layer}.")):
            wanted = state[name.replace(f"layers.{layer}.", f"layers.{source.layer}.")]
            grown[name].copy_(_widen(name, wanted, grown[name], old, new))
            if source.silent and name.endswith(("o_proj.weight", "down_proj.weight")):
                grown[name].zero_()
    return model


class _Source:
    """Which old layer a new one copies, and whether its outputs begin at zero."""

    def __init__(self, layer: int, *, silent: bool) -> None:
        self.layer, self.silent = layer, silent


def layer_sources(old: int, new: int) -> list[_Source]:
    """Spread `new - old` silent copies evenly among the old layers, each behind its original."""
    copies = [(i + 1) * new // old - i * new // old for i in range(old)]
    return [_Source(i, silent=copy > 0) for i in range(old) for copy in range(copies[i])]


def _check(old: ModelSpec, new: ModelSpec) -> None:
    grows = all(
        getattr(old, name) <= getattr(new, name)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    same = all(
        getattr(old, name) == getattr(new, name)
        for name in ("head_dim", "vocab_size", "num_key_value_heads", "rope_theta")
    )
    groups = [s.num_attention_heads // s.num_key_value_heads for s in (old, new)]
    if not grows or not same or groups[0] > groups[1]:
        raise CheckpointError(
            f"{new.name!r} cannot be grown from {old.name!r}: width, depth and heads only grow, "
            "while head size, key-value heads, vocabulary and angles stay; grow from another model"
        )


def _widen(name: str, small: Tensor, fresh: Tensor, old: ModelSpec, new: ModelSpec) -> Tensor:
    """Lay the old tensor into a new one; what is fresh reads at will, but writes nothing."""
    if fresh.ndim == 1:
        return torch.cat((small, small.mean().expand(len(fresh) - len(small)))) / _stretch(old, new)
    writes = name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight"))
    wide = torch.zeros_like(fresh) if writes else fresh.clone()
    if writes:
        small = small * _stretch(old, new)
    rows = _head_places(old, new) if "q_proj" in name else torch.arange(small.shape[0])
    columns = _head_places(old, new) if "o_proj" in name else torch.arange(small.shape[1])
    wide[rows[:, None], columns] = small
    return wide


def _stretch(old: ModelSpec, new: ModelSpec) -> float:
    """Say by how much what is written to the residual stream grows."""
    ratio: float = (new.hidden_size / old.hidden_size) ** 0.5
    return ratio


def _head_places(old: ModelSpec, new: ModelSpec) -> Tensor:
    """Say where the channels of the old query heads go, so that each keeps its key-value head."""
    groups = [s.num_attention_heads // s.num_key_value_heads for s in (old, new)]
    heads = torch.arange(old.num_attention_heads)
    places = heads // groups[0] * groups[1] + heads % groups[0]
    return (places[:, None] * new.head_dim + torch.arange(new.head_dim)).flatten()
