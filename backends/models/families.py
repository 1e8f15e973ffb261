"""What sets the served architectures apart from Llama, read out of config.json. No torch.

=====================  ====================================================================
architecture           differences
=====================  ====================================================================
LlamaForCausalLM       none
MistralForCausalLM     every query sees the last `sliding_window` positions only
Qwen2ForCausalLM       biases on q, k and v; some layers may have sliding windows
Qwen3ForCausalLM       queries and keys are normed head by head; windows as in Qwen2
MixtralForCausalLM     a mixture of experts in every layer
Qwen3MoeForCausalLM    Qwen3 with experts in some layers or all
Phi3ForCausalLM        q, k and v lie in one tensor, gate and up in another; windows as Mistral's
GraniteForCausalLM     the embedding, what layers add, scores and logits have factors
Gemma2ForCausalLM      GELU gates the feed-forward block, what layers add is normed, too, norms are
                       stored less 1, scores and logits have caps; every other layer has a window
Gemma3ForCausalLM      the same without caps, with head norms and with angles of their own in layers
                       with windows, which are five of six; also as what answers with text in a
                       Gemma3ForConditionalGeneration, which sees images
=====================  ====================================================================
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from backends.errors import ModelLoadError


class ExpertsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A mixture of experts."""

    count: int
    per_token: int
    intermediate_size: int
    renormalise: bool
    router: str
    """Name of the router's tensor under the layer, without `.weight`."""
    parts: tuple[str, str, str]
    """Names of an expert's gate, up and down projections; {} stands for its number."""


class Factors(msgspec.Struct, frozen=True, kw_only=True):
    """What Granite and Gemma multiply by, and Gemma's caps.

    Granite's factor for what layers add to the stream is not among them. Norms do not see how large
    the stream is, but for their eps: so it is kept divided by that factor, which is none then.
    """

    embedding: float = 1.0
    eps: float = 1.0
    scores: float | None = None
    """Of attention; None: head_dim ** -0.5."""
    logits: float = 1.0
    scores_cap: float | None = None
    """Scores become cap * tanh(score / cap)."""
    logits_cap: float | None = None


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """How the layers of one model differ from Llama's."""

    qkv_bias: bool = False
    output_bias: bool = False
    head_norms: bool = False
    """Whether queries and keys are normed before they are rotated."""
    fused: bool = False
    """Whether a layer's q, k and v are one tensor, and gate and up another."""
    gelu: bool = False
    """Whether the gate is GELU with tanh, not SiLU."""
    sandwich: bool = False
    """Whether what attention and the feed-forward block add to the stream is normed before."""
    norms_less_one: bool = False
    """Whether norms' weights are stored less 1."""
    factors: Factors = Factors()
    windows: tuple[int | None, ...]
    """Of each layer: how many positions a query sees; None: all."""
    experts: tuple[ExpertsConfig | None, ...]
    """Of each layer; None: a dense block."""


_OF_ALL: Final = ("quantization_config", "dtype", "torch_dtype", "eos_token_id", "bos_token_id")
"""Keys that stand outside of `text_config`."""
_GEMMA3: Final = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}
"""What Google's files leave out, as transformers had it when they were written."""
_MIXTRAL: Final = ("block_sparse_moe.gate", "block_sparse_moe.experts.{}.")
_QWEN: Final = ("mlp.gate", "mlp.experts.{}.")


def text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of what answers with text; of most models that is all of it."""
    if raw.get("architectures") != ["Gemma3ForConditionalGeneration"]:
        return dict(raw)
    outside = {key: value for key, value in raw.items() if key in _OF_ALL}
    told = {**_GEMMA3, **(raw.get("text_config") or {}), **outside}
    return {**told, "architectures": ["Gemma3ForCausalLM"]}


def read_family(raw: Mapping[str, Any], where: str, layers: int) -> Family:
    """Read a config.json.

    Raises:
        ModelLoadError: a key is missing, or its value is none that we serve.
    """
    name = str((raw.get("architectures") or [""])[0])
    bias = bool(raw.get("attention_bias", False))
    if name.startswith("Gemma"):
        return _gemma(raw, where, layers, bias=bias, head_norms=name == "Gemma3ForCausalLM")
    if name == "MistralForCausalLM":
        return Family(windows=(_window(raw),) * layers, experts=(None,) * layers)
    if name == "Phi3ForCausalLM":
        return Family(fused=True, windows=(_window(raw),) * layers, experts=(None,) * layers)
    if name == "MixtralForCausalLM":
        return Family(windows=(_window(raw),) * layers, experts=(_mixtral(raw, where),) * layers)
    windows = _windows_of_layers(raw, layers) if name.startswith("Qwen") else (None,) * layers
    if name == "Qwen2ForCausalLM":
        return Family(qkv_bias=True, windows=windows, experts=(None,) * layers)
    experts: tuple[ExpertsConfig | None, ...] = (None,) * layers
    if name == "Qwen3MoeForCausalLM":
        experts = _qwen_experts(raw, where, layers)
    return Family(
        qkv_bias=bias,
        output_bias=bias,
        head_norms=name.startswith("Qwen3"),
        factors=_granite(raw, where) if name == "GraniteForCausalLM" else Factors(),
        windows=windows,
        experts=experts,
    )


def _window(raw: Mapping[str, Any]) -> int | None:
    window = raw.get("sliding_window")
    positions = raw.get("max_position_embeddings") or 2048
    return int(window) if window and window < positions else None


def _windows_of_layers(raw: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Qwen's windows: off unless asked for; by layer type, or from some layer on."""
    window = _window(raw) if raw.get("use_sliding_window") else None
    kinds = raw.get("layer_types")
    if kinds:
        return _by_kind(kinds, window)
    first = raw.get("max_window_layers", 28)
    return tuple(window if layer >= first else None for layer in range(layers))


def _by_kind(kinds: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _gemma(
    raw: Mapping[str, Any], where: str, layers: int, *, bias: bool, head_norms: bool
) -> Family:
    if raw.get("use_bidirectional_attention"):
        raise ModelLoadError(
            f"{where}: use_bidirectional_attention is set: it embeds text and answers nothing"
        )
    window, kinds = _number(raw, "sliding_window", where), raw.get("layer_types")
    full = raw.get("sliding_window_pattern") or (6 if head_norms else 2)
    if kinds is None:
        kinds = [
            "full_attention" if (layer + 1) % full == 0 else "sliding_attention"
            for layer in range(layers)
        ]
    factors = Factors(
        embedding=_number(raw, "hidden_size", where) ** 0.5,
        scores=_factor(raw, "query_pre_attn_scalar", where, 256.0) ** -0.5,
        scores_cap=raw.get("attn_logit_softcapping"),
        logits_cap=raw.get("final_logit_softcapping"),
    )
    return Family(
        qkv_bias=bias,
        output_bias=bias,
        head_norms=head_norms,
        gelu=True,
        sandwich=True,
        norms_less_one=True,
        factors=factors,
        windows=_by_kind(kinds, window),
        experts=(None,) * layers,
    )


def _granite(raw: Mapping[str, Any], where: str) -> Factors:
    added = _factor(raw, "residual_multiplier", where)
    return Factors(
        embedding=_factor(raw, "embedding_multiplier", where) / added,
        eps=added**-2,
        scores=_factor(raw, "attention_multiplier", where),
        logits=1 / _factor(raw, "logits_scaling", where),
    )


def _mixtral(raw: Mapping[str, Any], where: str) -> ExpertsConfig:
    router, expert = _MIXTRAL
    return ExpertsConfig(
        count=_number(raw, "num_local_experts", where),
        per_token=_number(raw, "num_experts_per_tok", where),
        intermediate_size=_number(raw, "intermediate_size", where),
        renormalise=True,
        router=router,
        parts=(f"{expert}w1", f"{expert}w3", f"{expert}w2"),
    )


def _qwen_experts(
    raw: Mapping[str, Any], where: str, layers: int
) -> tuple[ExpertsConfig | None, ...]:
    router, expert = _QWEN
    config = ExpertsConfig(
        # transformers 5 writes every family's number by Mixtral's name.
        count=_number(raw, "num_experts" if "num_experts" in raw else "num_local_experts", where),
        per_token=_number(raw, "num_experts_per_tok", where),
        intermediate_size=_number(raw, "moe_intermediate_size", where),
        renormalise=bool(raw.get("norm_topk_prob", False)),
        router=router,
        parts=(f"{expert}gate_proj", f"{expert}up_proj", f"{expert}down_proj"),
    )
    dense, step = raw.get("mlp_only_layers") or (), raw.get("decoder_sparse_step", 1)
    return tuple(
        config if layer not in dense and (layer + 1) % step == 0 else None
        for layer in range(layers)
    )


def _factor(raw: Mapping[str, Any], key: str, where: str, default: float = 1.0) -> float:
    value = raw.get(key, default)
    if not isinstance(value, int | float) or not value > 0:
        raise ModelLoadError(f"{where}: {key} is {value!r}; allowed: a number above 0")
    return float(value)


def _number(raw: Mapping[str, Any], key: str, where: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or value < 1:
        raise ModelLoadError(f"{where}: {key} is {value!r}; allowed: a positive whole number")
    return value
