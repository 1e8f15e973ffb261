"""A Hugging Face `config.json` read into one frozen struct, whatever transformers wrote it.

transformers 4.x writes `rope_theta` beside `rope_scaling`; 5.x writes both in `rope_parameters`.
"""

from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import msgspec

from backends.errors import ModelLoadError
from backends.gguf.config import GROUPS, config_json, main_type
from backends.gguf.file import GgufFile, is_gguf, open_gguf
from backends.models.families import Family, read_family, text_config
from backends.models.quantization_config import read_quantization
from backends.quantization.schemes import Scheme, StoredQuantization

RopeType = Literal["default", "linear", "dynamic", "llama3", "longrope", "yarn"]
ROPE_TYPES: Final[tuple[str, ...]] = get_args(RopeType)
Dtype = Literal["float32", "bfloat16", "float16"]


class RopeParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How positions turn into angles; names are transformers'."""

    rope_type: RopeType = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    """How many times longer than trained the context may be."""
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial_rotary_factor: float = 1.0
    """Share of a head's dimensions that are rotated, the first ones."""
    short_factor: tuple[float, ...] = ()
    """longrope: what each pair's angle is divided by in contexts as long as trained, or shorter."""
    long_factor: tuple[float, ...] = ()
    """The same in longer ones."""
    divisors: tuple[float, ...] | None = None
    """What each pair's angle is divided by beside; None: by 1."""

    def rotary_dim(self, head_dim: int) -> int:
        """Dimensions of a head that are rotated."""
        return int(head_dim * self.partial_rotary_factor)


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of one model."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeParameters = RopeParameters()
    local_rope: RopeParameters | None = None
    """Of layers with a window, where they have their own."""
    tie_word_embeddings: bool = False
    family: Family
    """How its layers differ from Llama's."""
    mlp_bias: bool = False
    dtype: Dtype = "float32"
    """What the checkpoint's floating-point weights are stored in."""
    quantization: StoredQuantization | None = None
    """How the checkpoint's own linear weights are quantised; None: they are not."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None


def read_model_config(folder: Path) -> ModelConfig:
    """Read `config.json` and, for the end-of-sequence ids, `generation_config.json`.

    Args:
        folder: In the Hugging Face layout; or a .gguf file, whose metadata say the same.

    Raises:
        ModelLoadError: a file is missing or no JSON, a key is missing or has a value we do not
            serve; names the file, the key, the value and what is allowed.
    """
    if is_gguf(folder):
        return _gguf_config(open_gguf(folder))
    generation_file = folder / "generation_config.json"
    generation = _read_json(generation_file) if generation_file.is_file() else {}
    file = folder / "config.json"
    return _config(text_config(_read_json(file)), generation, str(file))


def _gguf_config(file: GgufFile) -> ModelConfig:
    config = _config(config_json(file), {}, str(file.path))
    kept = GROUPS.get(main_type(file))
    if kept is None:
        return config
    bits, size = kept
    scheme: Scheme = "int4" if bits == 4 else "int8"
    stored = StoredQuantization(scheme=scheme, layout="gguf", group_size=size)
    return msgspec.structs.replace(config, quantization=stored)


def _config(raw: dict[str, Any], generation: dict[str, Any], where: str) -> ModelConfig:
    heads = _positive(raw, "num_attention_heads", where)
    hidden = _positive(raw, "hidden_size", where)
    kv_heads = _positive(raw, "num_key_value_heads", where, default=heads)
    if heads % kv_heads:
        raise ModelLoadError(
            f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    architectures = raw.get("architectures") or [f"model_type={raw.get('model_type')!r}"]
    _check_gate(raw, str(architectures[0]), where)
    positions = _positive(raw, "max_position_embeddings", where, default=2048)
    layers = _positive(raw, "num_hidden_layers", where)
    family = read_family(raw, where, layers)
    head_dim = _positive(raw, "head_dim", where, default=hidden // heads)
    rope, local_rope = _ropes(raw, positions, head_dim, where)
    return ModelConfig(
        architecture=str(architectures[0]),
        vocab_size=_positive(raw, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size", where),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)) * family.factors.eps,
        rope=rope,
        local_rope=local_rope,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", family.norms_less_one)),
        family=family,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        dtype=_dtype(raw, where),
        quantization=read_quantization(raw, where),
        eos_token_ids=_ids(generation.get("eos_token_id", raw.get("eos_token_id"))),
        bos_token_id=next(iter(_ids(raw.get("bos_token_id"))), None),
    )


def _check_gate(raw: dict[str, Any], architecture: str, where: str) -> None:
    key = "hidden_activation" if raw.get("hidden_activation") else "hidden_act"
    served = "gelu_pytorch_tanh" if architecture.startswith("Gemma") else "silu"
    if (act := raw.get(key, served)) != served:
        raise ModelLoadError(f"{where}: {key} is {act!r}; we serve: {served!r}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError:
        raise ModelLoadError(
            f"no {file.name} in {str(file.parent)!r}; give a folder in the Hugging Face layout"
        ) from None
    except OSError as error:
        raise ModelLoadError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ModelLoadError(f"{str(file)!r} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelLoadError(f"{str(file)!r} holds no JSON object")
    return data


def _positive(raw: dict[str, Any], key: str, where: str, *, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        raise ModelLoadError(f"{where}: {key} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelLoadError(f"{where}: {key} is {value!r}; allowed: a positive whole number")
    return value


def _ropes(
    raw: dict[str, Any], positions: int, head_dim: int, where: str
) -> tuple[RopeParameters, RopeParameters | None]:
    """Read those of all layers, or of layers without a window and of layers with one."""
    kinds = raw.get("rope_parameters") or {}
    if "full_attention" in kinds:
        full, local = kinds["full_attention"], kinds.get("sliding_attention")
    else:
        full = kinds or raw.get("rope_scaling")
        base = raw.get("rope_local_base_freq")
        local = None if base is None else {"rope_theta": base}
    rope = _rope(full or {}, raw, positions, head_dim, where)
    return rope, None if local is None else _rope(local, raw, positions, head_dim, where)


def _rope(
    scaling: dict[str, Any], raw: dict[str, Any], positions: int, head_dim: int, where: str
) -> RopeParameters:
    """Read rotary parameters in either generation's spelling; what they lack stands in `raw`."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its name when Phi-3 was new
    if kind not in ROPE_TYPES:
        raise ModelLoadError(
            f"{where}: rope type {kind!r} is not supported; we serve: {', '.join(ROPE_TYPES)}"
        )
    known = {name: scaling[name] for name in RopeParameters.__struct_fields__ if name in scaling}
    known["rope_type"] = kind
    for key, default in (("rope_theta", 10000.0), ("partial_rotary_factor", 1.0)):
        known.setdefault(key, raw.get(key, default))
    original = known.get("original_max_position_embeddings") or raw.get(
        "original_max_position_embeddings"
    )
    known["original_max_position_embeddings"] = original or positions
    stretched = kind == "longrope" or (kind == "yarn" and "factor" not in known)
    if stretched or known.get("factor", 0) is None:
        known["factor"] = positions / known["original_max_position_embeddings"]
    for key in ("beta_fast", "beta_slow"):
        if known.get(key, 0) is None:
            del known[key]
    if kind in ("linear", "dynamic", "llama3") and "factor" not in known:
        raise ModelLoadError(f"{where}: rope type {kind!r} needs a factor")
    try:
        rope = msgspec.convert(known, RopeParameters, strict=False)
    except msgspec.ValidationError as error:
        raise ModelLoadError(f"{where}: rope parameters: {error}") from error
    _check_rope(rope, head_dim, where)
    return rope


def _check_rope(rope: RopeParameters, head_dim: int, where: str) -> None:
    share = rope.partial_rotary_factor
    if not 0 < share <= 1 or rope.rotary_dim(head_dim) % 2:
        raise ModelLoadError(
            f"{where}: partial_rotary_factor is {share!r} with heads of {head_dim}; allowed: above "
            "0 and at most 1, and an even number of them"
        )
    pairs = rope.rotary_dim(head_dim) // 2
    for key in ("short_factor", "long_factor") if rope.rope_type == "longrope" else ():
        if len(getattr(rope, key)) != pairs:
            raise ModelLoadError(
                f"{where}: {key} has {len(getattr(rope, key))} numbers; need {pairs}"
            )


def _dtype(raw: dict[str, Any], where: str) -> Dtype:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        raise ModelLoadError(
            f"{where}: dtype is {name!r}; we serve: 'float32', 'bfloat16', 'float16'"
        )
    return cast(Dtype, name)


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
