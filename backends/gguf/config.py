"""The metadata of a .gguf file as the config.json that it was made from. No torch.

=============  ========================================================================
architecture   is read as
=============  ========================================================================
llama          LlamaForCausalLM; with experts MixtralForCausalLM, with a sliding window
               MistralForCausalLM. Rows of queries and keys stand in pairs
qwen2          Qwen2ForCausalLM
qwen3          Qwen3ForCausalLM
qwen3moe       Qwen3MoeForCausalLM
phi3           Phi3ForCausalLM
granite        GraniteForCausalLM; rows as llama's
=============  ========================================================================
"""

from typing import Any, Final

from backends.errors import ModelLoadError
from backends.gguf.file import GgufFile, Tensor

GROUPS: Final = {
    "Q4_0": (4, 32),
    "Q4_1": (4, 32),
    "Q5_0": (8, 32),
    "Q5_1": (8, 32),
    "Q8_0": (8, 32),
    "Q2_K": (4, 16),
    "Q3_K": (4, 16),
    "Q4_K": (4, 32),
    "Q5_K": (8, 32),
    "Q6_K": (8, 16),
}
"""Types whose layers stay codes: the bits that a code is kept in, and the inputs of a group."""
ROPE_FACTORS: Final = "rope_freqs.weight"
"""What each pair's angle is divided by."""
LONGROPE_FACTORS: Final = {
    "short_factor": "rope_factors_short.weight",
    "long_factor": "rope_factors_long.weight",
}
"""The same, by the length of the context."""
_ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "granite": "GraniteForCausalLM",
}
_PAIRED: Final = ("llama", "granite")
_GRANITE: Final = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}
_ENCODERS: Final = ("bert", "t5encoder", "clip", "wavtokenizer")
_TRAINED: Final = {"F32": "float32", "BF16": "bfloat16"}
_NUMBER: Final = (int, float)
_MOST_POSITIONS: Final = 2**24


def paired_heads(file: GgufFile) -> tuple[int, int] | None:
    """Heads of queries and of keys whose rows (i, i + D/2) stand side by side; None: none do."""
    kind = file.need("general.architecture", str)
    if kind not in _PAIRED:
        return None
    heads = _same_everywhere(file, f"{kind}.attention.head_count")
    return heads, _same_everywhere(file, f"{kind}.attention.head_count_kv", heads)


def config_json(file: GgufFile) -> dict[str, Any]:
    """Write the config.json.

    Raises:
        ModelLoadError: an architecture or a key that we do not serve, or a missing one.
    """
    kind = file.need("general.architecture", str)
    _check_architecture(file, kind)
    hidden = file.need(f"{kind}.embedding_length", int)
    heads = _same_everywhere(file, f"{kind}.attention.head_count")
    head_dim = file.find(f"{kind}.attention.key_length", int) or hidden // heads
    rotated = file.find(f"{kind}.rope.dimension_count", int) or head_dim
    if (values := file.find(f"{kind}.attention.value_length", int) or head_dim) != head_dim:
        raise _refused(
            file, f"keys have {head_dim} numbers and values {values}; we serve: the same"
        )
    if rotated != head_dim and kind in _PAIRED:
        raise _refused(file, f"{rotated} of a head's {head_dim} numbers are rotated; we serve: all")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise _refused(file, "has no tensor 'token_embd.weight'")
    sliding = file.find(f"{kind}.attention.sliding_window", int)
    raw = {
        "architectures": [_ARCHITECTURES[kind]],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": _same_everywhere(file, f"{kind}.feed_forward_length"),
        "num_hidden_layers": _at_most(file, f"{kind}.block_count", len(file.tensors)),
        "num_attention_heads": heads,
        "num_key_value_heads": _same_everywhere(file, f"{kind}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _at_most(file, f"{kind}.context_length", _MOST_POSITIONS),
        "rms_norm_eps": file.need(f"{kind}.attention.layer_norm_rms_epsilon", _NUMBER),
        "rope_parameters": _rope(file, kind, rotated)
        | {"partial_rotary_factor": rotated / head_dim},
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "dtype": _TRAINED.get(main_type(file), "float16"),
    }
    if kind == "llama" and sliding:
        raw |= {"architectures": ["MistralForCausalLM"], "sliding_window": sliding}
    if kind == "phi3":
        raw |= {"sliding_window": sliding}
    if kind == "granite":
        scales = {ours: file.find(f"{kind}.{key}", _NUMBER) for ours, key in _GRANITE.items()}
        raw |= {ours: value for ours, value in scales.items() if value is not None}
    return raw | _experts(file, kind, sliding)


def main_type(file: GgufFile) -> str:
    """The type that most weights of the layers have."""
    counts: dict[str, int] = {}
    for name, tensor in file.tensors.items():
        if name.startswith("blk."):
            counts[tensor.kind.name] = counts.get(tensor.kind.name, 0) + tensor.data.nbytes
    return max(counts, key=counts.__getitem__, default="F32")


def _check_architecture(file: GgufFile, kind: str) -> None:
    if kind in _ARCHITECTURES:
        return
    served = f"we serve: {', '.join(_ARCHITECTURES)}"
    if kind in _ENCODERS or kind.endswith("bert") or kind.startswith("jina-"):
        served = (
            "it embeds text and answers nothing; give a backend of kind 'encoder' a "
            "sentence-transformers model"
        )
    raise _refused(file, f"is of architecture {kind!r}; {served}")


def _experts(file: GgufFile, kind: str, sliding: int | None) -> dict[str, Any]:
    """What a mixture of experts adds; nothing for a dense model."""
    count = file.find(f"{kind}.expert_count", int)
    if not count:
        return {}
    shared = {"num_experts_per_tok": file.need(f"{kind}.expert_used_count", int)}
    if kind == "llama":
        more = {"sliding_window": sliding, "num_local_experts": count}
        return {"architectures": ["MixtralForCausalLM"], **shared, **more}
    return {
        **shared,
        "num_experts": count,
        "moe_intermediate_size": file.need(f"{kind}.expert_feed_forward_length", int),
        "norm_topk_prob": True,
    }


def _rope(file: GgufFile, kind: str, rotated: int) -> dict[str, Any]:
    """How positions turn into angles, in transformers' words; `rotated` dimensions of a head."""
    prefix = f"{kind}.rope."
    rope: dict[str, Any] = {
        "rope_theta": file.find(f"{prefix}freq_base", _NUMBER) or 10000.0,
        "rope_type": "default",
    }
    for key, name in {"divisors": ROPE_FACTORS, **LONGROPE_FACTORS}.items():
        if (tensor := file.tensors.get(name)) is not None:
            rope[key] = _factors(file, tensor, name, rotated // 2)
    if "long_factor" in rope:
        told = {
            "attention_factor": file.find(f"{prefix}scaling.attn_factor", _NUMBER),
            "original_max_position_embeddings": file.find(
                f"{prefix}scaling.original_context_length", int
            ),
        }
        return rope | told | {"rope_type": "longrope"}
    scaling = file.find(f"{prefix}scaling.type", str) or "none"
    factor = file.find(f"{prefix}scaling.factor", _NUMBER)
    if factor is None and (old := file.find(f"{prefix}scale_linear", _NUMBER)):
        scaling, factor = "linear", old
    if scaling == "none" or not factor:
        return rope
    if scaling not in ("linear", "yarn"):
        raise _refused(file, f"scales angles by {scaling!r}; we serve: none, linear, yarn")
    rope |= {"rope_type": scaling, "factor": float(factor)}
    if scaling == "yarn":
        original = file.find(f"{prefix}scaling.original_context_length", int)
        told = {"original_max_position_embeddings": original}
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            told[ours] = file.find(f"{prefix}scaling.{theirs}", _NUMBER)
        rope |= {key: value for key, value in told.items() if value is not None}
    return rope


def _factors(file: GgufFile, tensor: Tensor, name: str, pairs: int) -> list[float]:
    if tensor.kind.name != "F32" or tensor.shape != (pairs,):
        held = f"{list(tensor.shape)} of type {tensor.kind.name}"
        raise _refused(file, f"{name!r} is {held}; we read: [{pairs}] of F32")
    found: list[float] = tensor.data.reshape(-1).view("<f4").tolist()
    return found


def _at_most(file: GgufFile, key: str, most: int) -> int:
    """A number that memory is taken by: a damaged one must not take all of it."""
    value = file.need(key, int)
    if value > most:
        raise _refused(file, f"says that {key!r} is {value}; at most {most} can be; fetch it again")
    return int(value)


def _same_everywhere(file: GgufFile, key: str, default: int | None = None) -> int:
    """A number that may stand there once, or for each layer; they must be alike."""
    value = file.find(key, (int, list))
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise _refused(file, f"{key!r} differs between layers; we serve: one for all")
        value = value[0]
    if value is None:
        value = file.need(key, int) if default is None else default
    return int(value)


def _refused(file: GgufFile, words: str) -> ModelLoadError:
    return ModelLoadError(f"{str(file.path)!r} {words}")
