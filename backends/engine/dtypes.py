"""What an engine computes in and keeps KV in: as it was told, else by device and measurement."""

from typing import Final, NamedTuple

import torch

from backends.engine import cpu_choice
from backends.engine.config import KvCacheDtype
from backends.engine.kv_cache import free_cpu_memory
from backends.engine.options import EngineOptions
from backends.models.config import ModelConfig
from backends.quantization.schemes import QuantizeAtLoad
from kernels.dispatch import implementation_for

_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
_FP8_CAPABILITY: Final = (8, 9)
"""Ada's."""


class Dtypes(NamedTuple):
    """Of activations and plain weights, and of keys and values."""

    compute: torch.dtype
    kv: torch.dtype


def pick_dtypes(options: EngineOptions, config: ModelConfig, device: torch.device) -> Dtypes:
    """Choose both.

    Raises:
        ValueError: a KV dtype that the device cannot read.
    """
    kv = _told(options.kv_cache_dtype, device)
    if device.type == "cuda":
        compute = torch.bfloat16 if options.dtype == "auto" else _DTYPES[options.dtype]
        return Dtypes(compute, kv or compute)
    if options.dtype != "auto":
        return Dtypes(_DTYPES[options.dtype], kv or torch.float32)
    if not _fits(config):
        return Dtypes(torch.bfloat16, kv or torch.float32)
    if options.deterministic:  # The same bits at every start, whatever is measured.
        return Dtypes(torch.float32, kv or torch.float32)
    exact_kv = cpu_choice.EXACT.kv
    candidates = [c for c in cpu_choice.CANDIDATES if kv is None or c.kv == exact_kv]
    chosen = cpu_choice.choose(config, _scheme(options, config), candidates=candidates)
    return Dtypes(_DTYPES[chosen.compute], kv or _DTYPES[chosen.kv])


def _told(option: KvCacheDtype, device: torch.device) -> torch.dtype | None:
    """The KV dtype that was asked for; None: auto."""
    if option == "auto":
        return None
    if (
        option == "fp8"
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) < _FP8_CAPABILITY
    ):
        raise ValueError(
            f"kv_cache_dtype is 'fp8', but {torch.cuda.get_device_name(device)} cannot read fp8; "
            "use int8, which takes as little"
        )
    return _DTYPES[option]


def _fits(config: ModelConfig) -> bool:
    """Whether fp32 weights leave room for others; C++ keeps those of 16 bits as they are stored."""
    kept = config.dtype != "float32" and implementation_for("cpu") == "native"
    return (2 if kept else 4) * _parameters(config) < max(free_cpu_memory() // 2, 2**30)


def _scheme(options: EngineOptions, config: ModelConfig) -> QuantizeAtLoad | None:
    """What the linear weights will be kept as on a CPU."""
    if config.quantization is None:
        return options.quantization
    stored = config.quantization.scheme
    return "int8" if stored == "w8a8" else stored


def _parameters(config: ModelConfig) -> int:
    """Count the weights, near enough to plan memory."""
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * config.hidden_size * heads * config.head_dim
    features = sum(
        config.intermediate_size if experts is None else experts.count * experts.intermediate_size
        for experts in config.family.experts
    )
    tables = 1 if config.tie_word_embeddings else 2
    layers = config.num_hidden_layers * attention + 3 * config.hidden_size * features
    return layers + tables * config.vocab_size * config.hidden_size
