"""The Llama architecture: pre-norm decoder, grouped-query attention, rotary positions, SwiGLU.

Letters: T packed tokens, H hidden size, V vocabulary.

Source: Touvron et al. 2023, "LLaMA"; Dubey et al. 2024, "The Llama 3 Herd of Models".
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.layers.attention import Attention, ForwardBatch, LayerCache
from backends.layers.linear import AnyLinear, Int8Linear
from backends.layers.norm import RMSNorm
from backends.layers.rope import cos_sin_cache
from backends.models.config import ModelConfig
from backends.models.loader import WeightReader
from backends.sampling.likeliest import likeliest
from kernels.decoder import DecoderWeights, LayerWeights, PackedWeight, plan
from kernels.silu_mul import silu_mul

if TYPE_CHECKING:
    from kernels.decoder.native import NativeDecoder


class _Layer(NamedTuple):
    input_norm: RMSNorm
    qkv: AnyLinear
    output: AnyLinear
    post_norm: RMSNorm
    gate_up: AnyLinear
    down: AnyLinear


class Llama:
    """One loaded model; stateless but for its weights."""

    def __init__(self, config: ModelConfig, weights: WeightReader, *, max_positions: int) -> None:
        """Take every tensor of the architecture from `weights`.

        Raises:
            ModelLoadError: a tensor is missing or has another shape; names it.
        """
        self.config = config
        hidden, dim = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
        self.embedding = weights.take("model.embed_tokens.weight", (config.vocab_size, hidden))
        self.layers = [
            _read_layer(config, weights, f"model.layers.{index}.", queries, keys)
            for index in range(config.num_hidden_layers)
        ]
        self.norm = RMSNorm(weights.take("model.norm.weight", (hidden,)), config.rms_norm_eps)
        self.head = weights.head(self.embedding, config.vocab_size, hidden)
        self.attention = Attention(config.num_attention_heads, config.num_key_value_heads, dim)
        self.cos_sin_cache = cos_sin_cache(config.rope, dim, max_positions, self.embedding.device)
        self._in_one_call = self._plan()

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Return the last hidden states [T, H] before the final norm; writes the caches."""
        decoder = self._in_one_call
        if decoder is not None and decoder.can_use(caches):
            return decoder.forward(*batch[:6])
        residual = F.embedding(batch.token_ids, self.embedding)
        x: Tensor | None = None
        for layer, cache in zip(self.layers, caches, strict=True):
            if x is None:
                normed = layer.input_norm(residual)
            else:
                normed, residual = layer.input_norm.add(x, residual)
            mixed = self.attention(layer.qkv(normed), self.cos_sin_cache, batch, cache)
            normed, residual = layer.post_norm.add(layer.output(mixed), residual)
            x = layer.down(silu_mul(layer.gate_up(normed)))
        return residual if x is None else x + residual

    def step(
        self, batch: ForwardBatch, caches: Sequence[LayerCache], rows: Tensor | None
    ) -> Tensor:
        """Run a step and return the fp32 logits [R, V] of `rows` [R] int64; None: of all."""
        decoder = self._in_one_call
        if decoder is not None and decoder.can_use(caches):
            return decoder.step(*batch[:6], rows=rows)
        hidden = self.forward(batch, caches)
        return self.logits(hidden if rows is None else hidden[rows])

    def likeliest(
        self, batch: ForwardBatch, caches: Sequence[LayerCache], rows: Tensor | None
    ) -> list[int]:
        """As `step`, but only each row's likeliest token, the first of equals."""
        decoder = self._in_one_call
        if decoder is not None and decoder.can_use(caches):
            return decoder.likeliest(*batch[:6], rows=rows)
        tokens: list[int] = likeliest(self.step(batch, caches, rows)).tolist()
        return tokens

    def logits(self, hidden: Tensor) -> Tensor:
        """Map rows [R, H] that `forward` returned to fp32 logits [R, V]."""
        if self._in_one_call is not None:
            return self._in_one_call.logits(hidden)
        return self.head(self.norm(hidden)).to(torch.float32)

    @property
    def step_bytes(self) -> int:
        """Weight bytes that one decode step reads, the embedding's gathered rows aside."""
        return sum(linear.nbytes for linear in self._linears())

    @property
    def step_weights(self) -> int:
        """Weights that one token is multiplied by."""
        return sum(linear.num_weights for linear in self._linears())

    @property
    def is_int8(self) -> bool:
        """Whether the decoder's linear layers are int8."""
        return any(isinstance(layer.qkv, Int8Linear) for layer in self.layers)

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a sequence's logits have the same bits whatever else is in the batch."""
        return self._in_one_call is not None

    def _plan(self) -> "NativeDecoder | None":
        """All layers as one C++ call, where every linear layer has a packed form."""
        layers = []
        head = self.head.packed_weight
        if head is None:
            return None
        for layer in self.layers:
            linears = (layer.qkv, layer.output, layer.gate_up, layer.down)
            packed = [linear.packed_weight for linear in linears]
            if None in packed:
                return None
            qkv, output, gate_up, down = cast(list[PackedWeight], packed)
            layers.append(
                LayerWeights(
                    layer.input_norm.weight, qkv, output, layer.post_norm.weight, gate_up, down
                )
            )
        return plan(
            DecoderWeights(
                embedding=self.embedding,
                layers=layers,
                norm=self.norm.weight,
                head=head,
                cos_sin_cache=self.cos_sin_cache,
                heads=self.attention.heads,
                kv_heads=self.attention.kv_heads,
                head_dim=self.attention.head_dim,
                eps=self.config.rms_norm_eps,
                scale=self.attention.scale,
            )
        )

    def _linears(self) -> Iterator[AnyLinear]:
        for layer in self.layers:
            yield from (layer.qkv, layer.output, layer.gate_up, layer.down)
        yield self.head


def _read_layer(
    config: ModelConfig, weights: WeightReader, prefix: str, queries: int, keys: int
) -> _Layer:
    """Read one decoder layer; q, k, v and gate, up are fused by rows."""
    hidden, middle = config.hidden_size, config.intermediate_size
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    return _Layer(
        input_norm=RMSNorm(
            weights.take(f"{prefix}input_layernorm.weight", (hidden,)), config.rms_norm_eps
        ),
        qkv=weights.linear(
            [f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj"],
            [queries, keys, keys],
            hidden,
            bias=config.attention_bias,
        ),
        output=weights.linear(
            [f"{attention}o_proj"], [hidden], queries, bias=config.attention_bias
        ),
        post_norm=RMSNorm(
            weights.take(f"{prefix}post_attention_layernorm.weight", (hidden,)),
            config.rms_norm_eps,
        ),
        gate_up=weights.linear(
            [f"{mlp}gate_proj", f"{mlp}up_proj"], [middle, middle], hidden, bias=config.mlp_bias
        ),
        down=weights.linear([f"{mlp}down_proj"], [hidden], middle, bias=config.mlp_bias),
    )
