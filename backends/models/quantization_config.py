"""`quantization_config` of a config.json: the scheme and layout that a checkpoint is written in."""

from collections.abc import Mapping
from typing import Any, Final

from backends.errors import ModelLoadError
from backends.quantization.schemes import Scheme, StoredQuantization

_SERVED: Final = (
    "we serve: compressed-tensors (int8 weights by channel, with or without dynamic 8-bit "
    "activations; fp8 by channel or tensor; int4 or int8 in groups), gptq with 4 or 8 bits, awq "
    "with 4"
)

_SCHEMES: Final[dict[Any, Scheme]] = {4: "int4", 8: "int8"}
"""By the bits of a code."""


def read_quantization(raw: Mapping[str, Any], where: str) -> StoredQuantization | None:
    """Read how the linear layers are stored; None: as plain floats.

    Raises:
        ModelLoadError: in a way that we do not serve; names it and what we do.
    """
    stored = raw.get("quantization_config")
    if stored is None:
        return None
    method = stored.get("quant_method")
    if method == "compressed-tensors":
        return _compressed_tensors(stored, where)
    bits = stored.get("bits")
    if method == "gptq" and bits in _SCHEMES and not stored.get("desc_act"):
        first = stored.get("checkpoint_format", "gptq") != "gptq_v2"
        return StoredQuantization(
            scheme=_SCHEMES[bits],
            layout="gptq",
            group_size=_group(stored.get("group_size")),
            zero_offset=1 if first else 0,
        )
    version = str(stored.get("version", "gemm")).lower()
    if method == "awq" and bits == 4 and version == "gemm":
        return StoredQuantization(
            scheme="int4", layout="awq", group_size=_group(stored.get("group_size"))
        )
    told = {key: stored[key] for key in ("bits", "desc_act", "version") if key in stored}
    raise ModelLoadError(f"{where}: quantization_config is {method!r} with {told}; {_SERVED}")


def _compressed_tensors(stored: Mapping[str, Any], where: str) -> StoredQuantization:
    groups = stored.get("config_groups") or {"group_0": {}}
    packed = stored.get("format") == "pack-quantized"
    found = {name: _scheme(group, packed) for name, group in groups.items()}
    for name, scheme in found.items():
        if scheme is None:
            raise ModelLoadError(
                f"{where}: quantization group {name!r} is {dict(groups[name])}; {_SERVED}"
            )
    kinds = set(found.values())
    if len(kinds) > 1:
        raise ModelLoadError(f"{where}: quantization groups {sorted(found)} differ; {_SERVED}")
    return next(kind for kind in kinds if kind is not None)


def _scheme(group: Mapping[str, Any], packed: bool) -> StoredQuantization | None:
    """What one group of layers is; None: nothing that we serve."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
    strategy, symmetric = weights.get("strategy", "channel"), weights.get("symmetric", True)
    words = packed if bits == 8 else bits == 4
    if words and kind == "int" and strategy in ("group", "channel") and not inputs:
        size = _group(weights.get("group_size")) if strategy == "group" else None
        return StoredQuantization(
            scheme=_SCHEMES[bits], packed=True, group_size=size, symmetric=symmetric
        )
    if bits != 8 or not symmetric:
        return None
    if kind == "float" and strategy in ("channel", "tensor"):
        return StoredQuantization(scheme="fp8", per_tensor=strategy == "tensor")
    if kind != "int" or strategy != "channel":
        return None
    if not inputs:
        return StoredQuantization(scheme="int8")
    dynamic = inputs.get("dynamic") and inputs.get("num_bits") == 8
    return StoredQuantization(scheme="w8a8") if dynamic else None


def _group(size: Any) -> int | None:
    return size if isinstance(size, int) and size > 0 else None
