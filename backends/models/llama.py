"""Llama and its kin: pre-norm decoder, grouped-query attention, rotary positions, SwiGLU.

`families` says what else a model may have: biases, head norms, sliding windows, experts, factors.

Letters: T packed tokens, H hidden size, V vocabulary.

Source: Touvron et al. 2023, "LLaMA"; Dubey et al. 2024, "The Llama 3 Herd of Models"; Jiang et al.
2023, "Mistral 7B"; Jiang et al. 2024, "Mixtral of Experts"; Yang et al. 2025, "Qwen3"; Abdin et al.
2024, "Phi-3 Technical Report"; IBM 2024, "Granite 3.0 Language Models"; Gemma Team 2024, "Gemma 2",
2025, "Gemma 3 Technical Report".
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.layers.attention import Attention, ForwardBatch, LayerCache
from backends.layers.coded_linear import kept_as
from backends.layers.linear import AnyLinear
from backends.layers.mlp import Experts, Mlp, stack_experts
from backends.layers.norm import RMSNorm
from backends.layers.rope import cos_sin_cache, qkv_order
from backends.models.adapters import Adapter, AdapterTable
from backends.models.config import ModelConfig
from backends.models.families import ExpertsConfig
from backends.models.loader import EMBEDDING, WeightReader
from backends.sampling.likeliest import likeliest
from kernels.decoder import DecoderWeights, LayerWeights, PackedWeight, plan
from kernels.gated_mul import gelu_mul, silu_mul
from kernels.invariance import is_promised

if TYPE_CHECKING:
    from kernels.decoder.native import NativeDecoder


class _Layer(NamedTuple):
    input_norm: RMSNorm
    qkv: AnyLinear
    attention: Attention
    output: AnyLinear
    output_norm: RMSNorm | None
    post_norm: RMSNorm
    mlp: Mlp | Experts
    down_norm: RMSNorm | None


class Llama:
    """One loaded model; stateless but for its weights."""

    def __init__(self, config: ModelConfig, weights: WeightReader, *, max_positions: int) -> None:
        """Take every tensor of the architecture from `weights`.

        Raises:
            ModelLoadError: a tensor is missing or has another shape; names it.
        """
        self.config = config
        hidden, dim = config.hidden_size, config.head_dim
        embedding = weights.take(EMBEDDING, (config.vocab_size, hidden))
        self.layers = [
            _read_layer(config, weights, index) for index in range(config.num_hidden_layers)
        ]
        self.norm = _read_norm(config, weights, "model.norm", hidden)
        self.head = weights.head(embedding, config.vocab_size, hidden)
        factors = config.family.factors
        self.embedding = embedding if factors.embedding == 1 else embedding * factors.embedding
        self._factors = factors
        device = self.embedding.device
        self.cos_sin_cache = cos_sin_cache(config.rope, dim, max_positions, device)
        local = config.local_rope
        self._tables = [self.cos_sin_cache] * len(self.layers)
        if local is not None:
            table = cos_sin_cache(local, dim, max_positions, device)
            windows = config.family.windows
            self._tables = [table if window else self.cos_sin_cache for window in windows]
        self._in_one_call = self._plan()
        self.adapt(())

    def adapt(self, adapters: Sequence[Adapter]) -> None:
        """Serve LoRA adapters; a batch names each sequence's by its place among them."""
        self.adapters = AdapterTable(
            adapters, self.config, dtype=self.embedding.dtype, device=self.embedding.device
        )

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Return the last hidden states [T, H] before the final norm; writes the caches."""
        decoder = self._decoder_for(batch, caches)
        if decoder is not None:
            return decoder.forward(*batch[:6])
        residual = F.embedding(batch.token_ids, self.embedding)
        x: Tensor | None = None
        adapted = self.adapters.apply
        each = zip(self.layers, self._tables, caches, strict=True)
        for index, (layer, table, cache) in enumerate(each):
            if x is None:
                normed = layer.input_norm(residual)
            else:
                normed, residual = layer.input_norm.add(x, residual)
            qkv = adapted(layer.qkv, normed, index, "qkv", batch)
            mixed = layer.attention(qkv, table, batch, cache)
            out = adapted(layer.output, mixed, index, "output", batch)
            if layer.output_norm is not None:
                out = layer.output_norm(out)
            normed, residual = layer.post_norm.add(out, residual)
            if isinstance(layer.mlp, Experts):
                x = layer.mlp(normed)
            else:
                both = adapted(layer.mlp.gate_up, normed, index, "gate_up", batch)
                x = adapted(layer.mlp.down, layer.mlp.gate(both), index, "down", batch)
            if layer.down_norm is not None:
                x = layer.down_norm(x)
        return residual if x is None else x + residual

    def step(
        self, batch: ForwardBatch, caches: Sequence[LayerCache], rows: Tensor | None
    ) -> Tensor:
        """Run a step and return the fp32 logits [R, V] of `rows` [R] int64; None: of all."""
        decoder = self._decoder_for(batch, caches)
        if decoder is not None:
            return self._scaled(decoder.step(*batch[:6], rows=rows))
        hidden = self.forward(batch, caches)
        return self.logits(hidden if rows is None else hidden[rows])

    def likeliest(
        self, batch: ForwardBatch, caches: Sequence[LayerCache], rows: Tensor | None
    ) -> list[int]:
        """As `step`, but only each row's likeliest token, the first of equals."""
        decoder = self._decoder_for(batch, caches)
        if decoder is not None:
            return decoder.likeliest(*batch[:6], rows=rows)
        tokens: list[int] = likeliest(self.step(batch, caches, rows)).tolist()
        return tokens

    def logits(self, hidden: Tensor) -> Tensor:
        """Map rows [R, H] that `forward` returned to fp32 logits [R, V]."""
        if self._in_one_call is not None:
            return self._scaled(self._in_one_call.logits(hidden))
        return self._scaled(self.head(self.norm(hidden)).to(torch.float32))

    def _scaled(self, logits: Tensor) -> Tensor:
        """Granite's and Gemma's, in place."""
        if (cap := self._factors.logits_cap) is not None:
            return logits.div_(cap).tanh_().mul_(cap)
        return logits if self._factors.logits == 1 else logits.mul_(self._factors.logits)

    @property
    def step_bytes(self) -> int:
        """Weight bytes that one decode step reads, the embedding's gathered rows aside."""
        return sum(part.nbytes for part in self._parts())

    @property
    def step_weights(self) -> int:
        """Weights that one token is multiplied by."""
        return sum(part.num_weights for part in self._parts())

    @property
    def quantization(self) -> str | None:
        """What the layers' weights are kept as: int8, int4, fp8 or w8a8; None: plain floats."""
        return kept_as(self.layers[0].qkv)

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a sequence's logits have the same bits whatever else is in the batch."""
        if self._in_one_call is not None:
            return True
        has_experts = any(isinstance(layer.mlp, Experts) for layer in self.layers)
        return self.embedding.is_cuda and is_promised() and not has_experts

    def _decoder_for(
        self, batch: ForwardBatch, caches: Sequence[LayerCache]
    ) -> "NativeDecoder | None":
        """The layers as one call, where they can be for this step."""
        decoder = self._in_one_call
        if decoder is None or batch.adapters is not None or not decoder.can_use(caches):
            return None
        return decoder

    def _plan(self) -> "NativeDecoder | None":
        """All layers as one C++ call, where every linear layer has a packed form."""
        layers = []
        head = self.head.packed_weight
        if head is None:
            return None
        for layer, table in zip(self.layers, self._tables, strict=True):
            if isinstance(layer.mlp, Experts):
                return None
            linears = (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)
            packed = [linear.packed_weight for linear in linears]
            if None in packed:
                return None
            qkv, output, gate_up, down = cast(list[PackedWeight], packed)
            attention = layer.attention
            query_norm, key_norm, output_norm, down_norm = (
                None if norm is None else norm.weight
                for norm in (
                    attention.query_norm,
                    attention.key_norm,
                    layer.output_norm,
                    layer.down_norm,
                )
            )
            layers.append(
                LayerWeights(
                    input_norm=layer.input_norm.weight,
                    qkv=qkv,
                    output=output,
                    post_norm=layer.post_norm.weight,
                    gate_up=gate_up,
                    down=down,
                    query_norm=query_norm,
                    key_norm=key_norm,
                    window=attention.window,
                    output_norm=output_norm,
                    down_norm=down_norm,
                    cos_sin_cache=table,
                )
            )
        return plan(
            DecoderWeights(
                embedding=self.embedding,
                layers=layers,
                norm=self.norm.weight,
                head=head,
                cos_sin_cache=self.cos_sin_cache,
                heads=self.config.num_attention_heads,
                kv_heads=self.config.num_key_value_heads,
                head_dim=self.config.head_dim,
                eps=self.config.rms_norm_eps,
                scale=self.layers[0].attention.scale,
                soft_cap=self._factors.scores_cap,
                gelu=self.config.family.gelu,
            )
        )

    def _parts(self) -> Iterator[AnyLinear | Experts]:
        for layer in self.layers:
            yield from (layer.qkv, layer.output)
            if isinstance(layer.mlp, Experts):
                yield layer.mlp
            else:
                yield from (layer.mlp.gate_up, layer.mlp.down)
        yield self.head


def _read_layer(config: ModelConfig, weights: WeightReader, index: int) -> _Layer:
    """Read one decoder layer; q, k, v are fused by rows, where they are not stored so."""
    prefix, hidden, dim = f"model.layers.{index}.", config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
    family, attention = config.family, f"{prefix}self_attn."

    def norm(name: str, size: int) -> RMSNorm:
        return _read_norm(config, weights, f"{prefix}{name}", size)

    names, rows = [f"{attention}{part}_proj" for part in "qkv"], [queries, keys, keys]
    if family.fused:
        names, rows = [f"{attention}qkv_proj"], [sum(rows)]
    return _Layer(
        input_norm=norm("input_layernorm", hidden),
        qkv=weights.linear(names, rows, hidden, bias=family.qkv_bias, order=qkv_order(config)),
        attention=Attention(
            config.num_attention_heads,
            config.num_key_value_heads,
            dim,
            scale=family.factors.scores,
            soft_cap=family.factors.scores_cap,
            window=family.windows[index],
            query_norm=norm("self_attn.q_norm", dim) if family.head_norms else None,
            key_norm=norm("self_attn.k_norm", dim) if family.head_norms else None,
        ),
        output=weights.linear([f"{attention}o_proj"], [hidden], queries, bias=family.output_bias),
        output_norm=norm("post_attention_layernorm", hidden) if family.sandwich else None,
        post_norm=norm(
            "pre_feedforward_layernorm" if family.sandwich else "post_attention_layernorm", hidden
        ),
        mlp=_read_mlp(config, weights, prefix, family.experts[index]),
        down_norm=norm("post_feedforward_layernorm", hidden) if family.sandwich else None,
    )


def _read_norm(config: ModelConfig, weights: WeightReader, name: str, size: int) -> RMSNorm:
    """Read a norm; in fp32 where 1 has to be added, which takes bits of 16."""
    weight = weights.take(f"{name}.weight", (size,))
    return RMSNorm(
        weight.float() + 1 if config.family.norms_less_one else weight, config.rms_norm_eps
    )


def _read_mlp(
    config: ModelConfig, weights: WeightReader, prefix: str, experts: ExpertsConfig | None
) -> Mlp | Experts:
    """Read a layer's feed-forward block; gate and up are fused by rows."""
    hidden = config.hidden_size
    if experts is None:
        middle, mlp = config.intermediate_size, f"{prefix}mlp."
        names, rows = [f"{mlp}gate_proj", f"{mlp}up_proj"], [middle, middle]
        if config.family.fused:
            names, rows = [f"{mlp}gate_up_proj"], [2 * middle]
        return Mlp(
            weights.linear(names, rows, hidden, bias=config.mlp_bias),
            weights.linear([f"{mlp}down_proj"], [hidden], middle, bias=config.mlp_bias),
            gelu_mul if config.family.gelu else silu_mul,
        )
    middle = experts.intermediate_size
    gate_up, down = [], []
    for expert in range(experts.count):
        *inner, outer = (f"{prefix}{part.format(expert)}" for part in experts.parts)
        gate_up.append(weights.dense(inner, [middle, middle], hidden))
        down.append(weights.dense([outer], [hidden], middle))
    return Experts(
        weights.dense([f"{prefix}{experts.router}"], [experts.count], hidden),
        stack_experts(gate_up),
        stack_experts(down),
        top_k=experts.per_token,
        renormalise=experts.renormalise,
    )
