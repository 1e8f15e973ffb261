"""LoRA adapters out of folders in PEFT's layout, and how a decoder runs with them.

One adapter's weights lie beside the others', layer by layer, so that a batch may hold sequences of
any adapters and of none. What they add to each linear layer is computed op by op; the layer itself
is the one that everybody shares.

Source: Hu et al. 2022, "LoRA"; Chen et al. 2024, "Punica: Multi-Tenant LoRA Serving".
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from backends.errors import ModelLoadError
from backends.layers.attention import ForwardBatch
from backends.layers.linear import AnyLinear
from backends.layers.rope import qkv_order
from backends.models.config import ModelConfig
from kernels.lora import lora_add

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
_TENSOR: Final = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
)
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "modules_to_save": ([],),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "lora_bias": (False,),
}
"""What may stand in adapter_config.json beside an adapter of one rank that only adds products."""


class Target(NamedTuple):
    """A projection that adapters may change, and where its channels lie in the fused layer."""

    layer: str
    first: int
    channels: int
    inputs: int


class Adapter(NamedTuple):
    """One adapter as it was read."""

    name: str
    scale: float
    weights: Mapping[tuple[int, str], tuple[Tensor, Tensor]]
    """(layer, projection) → [rank, inputs] and [channels, rank] fp32."""


def targets_of(config: ModelConfig) -> dict[str, Target]:
    """The projections of a model's layers by name."""
    hidden, middle, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
    if config.family.fused:
        return {
            "qkv_proj": Target("qkv", 0, queries + 2 * keys, hidden),
            "o_proj": Target("output", 0, hidden, queries),
            "gate_up_proj": Target("gate_up", 0, 2 * middle, hidden),
            "down_proj": Target("down", 0, hidden, middle),
        }
    return {
        "q_proj": Target("qkv", 0, queries, hidden),
        "k_proj": Target("qkv", queries, keys, hidden),
        "v_proj": Target("qkv", queries + keys, keys, hidden),
        "o_proj": Target("output", 0, hidden, queries),
        "gate_proj": Target("gate_up", 0, middle, hidden),
        "up_proj": Target("gate_up", middle, middle, hidden),
        "down_proj": Target("down", 0, hidden, middle),
    }


def read_adapter(name: str, folder: Path, config: ModelConfig) -> Adapter:
    """Read a folder that PEFT's `save_pretrained` wrote.

    Raises:
        ModelLoadError: a file is missing or broken, or the adapter changes what we do not adapt;
            names the adapter, the folder and what is wrong.
    """
    where = f"adapter {name!r} in {str(folder)!r}"
    settings = _read_settings(folder, where)
    rank = settings.get("r")
    alpha = settings.get("lora_alpha", rank)
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ModelLoadError(f"{where}: r is {rank!r} and lora_alpha {alpha!r}; need numbers")
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{where}: cannot read {WEIGHTS_FILE}: {error}") from error
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, projection, half = _place(key, config, where)
        target = targets_of(config)[projection]
        wanted = [rank, target.inputs] if half == "A" else [target.channels, rank]
        if list(tensor.shape) != wanted:
            raise ModelLoadError(f"{where}: {key!r} is {list(tensor.shape)}; need {wanted}")
        halves.setdefault((layer, projection), {})[half] = tensor.float()
    for (layer, projection), found in halves.items():
        if len(found) != 2:
            raise ModelLoadError(f"{where}: layer {layer}'s {projection} lacks one of its halves")
    if not halves:
        raise ModelLoadError(f"{where}: {WEIGHTS_FILE} holds no tensors")
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return Adapter(name, scale, {place: (h["A"], h["B"]) for place, h in halves.items()})


def _read_settings(folder: Path, where: str) -> dict[str, Any]:
    try:
        settings = msgspec.json.decode((folder / CONFIG_FILE).read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ModelLoadError(
            f"{where}: no {CONFIG_FILE} ({error.strerror}); give a folder that PEFT saved"
        ) from error
    except msgspec.MsgspecError as error:
        raise ModelLoadError(f"{where}: {CONFIG_FILE} is no JSON object: {error}") from error
    for key, allowed in _NEUTRAL.items():
        value = settings.get(key)
        if value is not None and value not in allowed:
            raise ModelLoadError(
                f"{where}: {key} is {value!r}; we serve: {', '.join(map(repr, allowed))}"
            )
    return settings


def _place(key: str, config: ModelConfig, where: str) -> tuple[int, str, str]:
    """Layer, projection and half of a tensor's name."""
    match = _TENSOR.fullmatch(key)
    targets = targets_of(config)
    if match is None or match[2] not in targets:
        raise ModelLoadError(
            f"{where}: {key!r} adapts what we do not; we serve: {', '.join(targets)}"
        )
    layer = int(match[1])
    if layer >= config.num_hidden_layers:
        raise ModelLoadError(
            f"{where}: {key!r}, but the model has {config.num_hidden_layers} layers; "
            "it belongs to another"
        )
    if config.family.experts[layer] is not None and targets[match[2]].layer in ("gate_up", "down"):
        raise ModelLoadError(f"{where}: {key!r} adapts experts, which we do not serve")
    return layer, match[2], match[3]


class _Stacked(NamedTuple):
    """All adapters of one projection."""

    first: int
    channels: int
    a: Tensor
    b: Tensor


class AdapterTable:
    """Every adapter's weights, stacked; those that leave a projection alone hold zeros there."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.names = [adapter.name for adapter in adapters]
        self._scales = torch.tensor([adapter.scale for adapter in adapters], device=device)
        self._parts: dict[tuple[int, str], list[_Stacked]] = {}
        rank = max((_rank(adapter) for adapter in adapters), default=0)
        order = qkv_order(config)
        for projection, target in targets_of(config).items():
            for layer in range(config.num_hidden_layers):
                place = (layer, projection)
                if not any(place in adapter.weights for adapter in adapters):
                    continue
                a = torch.zeros(len(adapters), rank, target.inputs)
                b = torch.zeros(len(adapters), target.channels, rank)
                for index, adapter in enumerate(adapters):
                    if place in adapter.weights:
                        low, high = adapter.weights[place]
                        a[index, : low.shape[0]] = low
                        b[index, :, : low.shape[0]] = high
                if target.layer == "qkv" and order is not None:
                    own = order[target.first : target.first + target.channels] - target.first
                    b = b[:, own]
                a, b = a.to(device, dtype), b.to(device, dtype)
                stacked = _Stacked(target.first, target.channels, a, b)
                self._parts.setdefault((layer, target.layer), []).append(stacked)

    def apply(
        self, linear: AnyLinear, x: Tensor, layer: int, name: str, batch: ForwardBatch
    ) -> Tensor:
        """Run a fused layer, then add what each sequence's adapter does to its input.

        Args:
            x: [T, K].
            name: qkv, output, gate_up or down.

        Returns:
            [T, N].
        """
        out = linear(x)
        if batch.adapters is None:
            return out
        for part in self._parts.get((layer, name), ()):
            lora_add(
                out[:, part.first : part.first + part.channels],
                x,
                part.a,
                part.b,
                self._scales,
                batch.query_start_lens,
                batch.adapters,
            )
        return out


def _rank(adapter: Adapter) -> int:
    return max(low.shape[0] for low, _ in adapter.weights.values())
