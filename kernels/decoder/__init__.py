"""All layers of a Llama-shaped decoder as one call, and its head as another, where C++ runs them.

Between small ops Python and the framework cost more than the arithmetic of a small model. The
numbers are those of the ops one after another, bit for bit; they are its reference: `rms_norm`,
`quant_linear`, `group_quant_linear`, `packed_linear`, `rope`, `store_kv`, `paged_attention`,
`silu_mul` or `gelu_mul`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kernels.dispatch import implementation_for
from kernels.native_cache import HEAD_DIM_MULTIPLE

if TYPE_CHECKING:
    from kernels.decoder.native import NativeDecoder


class PackedWeight(NamedTuple):
    """A linear layer in the form that C++ reads."""

    packed: Tensor
    """int8, see `quant_linear.copies`, codes in groups, see `group_quant_linear.pack`, or floats,
    see `packed_linear.pack`."""
    scale: Tensor | None
    """[N] fp32 of an int8 weight without groups."""
    bias: Tensor | None
    """[N] fp32."""
    channels: int
    inputs: int
    group: int | None = None
    """Inputs of a group, where there are groups."""
    float_zeros: bool = False
    """Whether the groups' zero points are floats."""


class LayerWeights(NamedTuple):
    """One layer, in the order in which it is applied."""

    input_norm: Tensor
    """[H] fp32."""
    qkv: PackedWeight
    output: PackedWeight
    post_norm: Tensor
    gate_up: PackedWeight
    down: PackedWeight
    query_norm: Tensor | None = None
    """[D] fp32: queries are normed head by head before they are rotated."""
    key_norm: Tensor | None = None
    sinks: Tensor | None = None
    """[Hq] fp32; see `paged_attention`, as of the next."""
    window: int | None = None
    output_norm: Tensor | None = None
    """[H] fp32: of what attention adds to the stream."""
    down_norm: Tensor | None = None
    """[H] fp32: of what the feed-forward block adds."""
    cos_sin_cache: Tensor | None = None
    """[P, D] fp32; None: that of all layers."""


class DecoderWeights(NamedTuple):
    """What `plan` takes."""

    embedding: Tensor
    """[V, H] fp32, contiguous."""
    layers: Sequence[LayerWeights]
    norm: Tensor
    """[H] fp32, before the head."""
    head: PackedWeight
    cos_sin_cache: Tensor
    """[P, D] fp32; see `rope`."""
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float
    """Of the attention scores."""
    soft_cap: float | None = None
    gelu: bool = False
    """Whether the gate is `gelu_mul`, not `silu_mul`."""


def plan(weights: DecoderWeights) -> "NativeDecoder | None":
    """Prepare the call; None where the ops must run one by one instead.

    That is: on another device than the CPU, without a compiler, in another dtype than fp32, or with
    a head size that is no multiple of 16.
    """
    floats = (weights.embedding, weights.cos_sin_cache, *(w.input_norm for w in weights.layers))
    fits = (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in floats)
        and bool(weights.layers)
        and weights.head_dim % HEAD_DIM_MULTIPLE == 0
        and implementation_for("cpu") == "native"
    )
    if not fits:
        return None
    from kernels.decoder.native import NativeDecoder

    return NativeDecoder(weights)
