"""Writes .gguf files of Hugging Face folders with the `gguf` package, as llama.cpp's converter.

Names come from that package, not from ours.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray
from safetensors import safe_open

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Phi3ForCausalLM": "phi3",
    "GraniteForCausalLM": "granite",
}
Floats = NDArray[np.float32]
PickType = Callable[[str], str]
"""Of a tensor's name in the file, the name of its type."""


def folder_weights(folder: Path) -> dict[str, Floats]:
    """All weights as fp32; int8 codes by channel are multiplied out."""
    import torch

    found: dict[str, Floats] = {}
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        names = list(opened.keys())
        for name in names:
            if name.endswith("_scale"):
                continue
            tensor = opened.get_tensor(name).float()
            if f"{name}_scale" in names:
                tensor *= opened.get_tensor(f"{name}_scale").float()
            found[name] = tensor.to(torch.float32).numpy()
    return found


def write_gguf(
    folder: Path,
    target: Path,
    kind: str | PickType = "F32",
    *,
    pre: str = "smollm",
    parts: int = 0,
    more: Mapping[str, Any] | None = None,
    beside: Mapping[str, Floats] | None = None,
    blocks: Callable[[str, Floats], NDArray[np.uint8]] | None = None,
    leave_out: tuple[str, ...] = (),
) -> Path:
    """Write a folder's model, with its tokenizer if it has one; return the file, or its first part.

    Args:
        kind: The type of the layers' and the embedding's weights. Norms and biases are F32.
        parts: Split it into so many files.
        more: Further metadata, or other values.
        beside: Further tensors.
        blocks: Makes a matrix's blocks, for a type that the package cannot write.
        leave_out: Tensors that are not written.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = _ARCHITECTURES[config["architectures"][0]]
    options = {"split_max_tensors": 5} if parts else {}
    writer = GGUFWriter(target, arch, **options)
    _add_shape(writer, arch, config)
    if (folder / "tokenizer.json").is_file():
        _add_tokenizer(writer, folder, config, pre)
    for key, value in (more or {}).items():
        _add_value(writer, key, value)
    for name, values in _renamed(folder_weights(folder), arch, config).items():
        if name in leave_out:
            continue
        wanted = kind if isinstance(kind, str) else kind(name)
        if values.ndim == 1 or "ffn_gate_inp" in name:
            wanted = "F32"
        quantised = GGMLQuantizationType[wanted]
        own = blocks is not None and wanted != "F32"
        raw = blocks(name, values) if own and blocks else gguf.quantize(values, quantised)
        writer.add_tensor(name, raw, raw_dtype=quantised)
    for name, values in (beside or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(iter(sorted(target.parent.glob(f"{target.stem}-00001-of-*.gguf"))), target)


def _add_shape(writer: GGUFWriter, arch: str, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    experts = config.get("num_local_experts") or config.get("num_experts")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    for shard in writer.kv_data:  # The later value counts.
        shard.pop(key, None)
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds |= {str: writer.add_string, list: writer.add_array}  # type: ignore[dict-item]
    kinds[type(value)](key, value)


def _add_tokenizer(writer: GGUFWriter, folder: Path, config: Mapping[str, Any], pre: str) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    model = raw["model"]
    added = {token["id"]: token for token in raw["added_tokens"]}
    ids = dict(model["vocab"]) | {token["content"]: place for place, token in added.items()}
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = [_kind(place, text, added) for place, text in enumerate(tokens)]
    if model["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        ranks = {"".join(merge): -float(rank) for rank, merge in enumerate(model["merges"])}
        writer.add_token_scores([ranks.get(text, -1e6) for text in tokens])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("bos", "eos", "pad"):
        entry = told.get(f"{name}_token")
        text = entry["content"] if isinstance(entry, dict) else entry
        if text is not None:
            getattr(writer, f"add_{name}_token_id")(ids[text])
    if told.get("chat_template"):
        writer.add_chat_template(told["chat_template"])


def _kind(place: int, text: str, added: Mapping[int, Any]) -> TokenType:
    if text == "<unk>":
        return TokenType.UNKNOWN
    if place in added:
        return TokenType.CONTROL if added[place]["special"] else TokenType.USER_DEFINED
    return TokenType.BYTE if text.startswith("<0x") and len(text) == 6 else TokenType.NORMAL


def _renamed(
    weights: Mapping[str, Floats], arch: str, config: Mapping[str, Any]
) -> dict[str, Floats]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found: dict[str, Floats] = {}
    experts: dict[str, list[Floats]] = {}
    for name, values in sorted(weights.items(), key=_by_expert):
        part = name.split(".")[-2]
        if arch in ("llama", "granite") and part in heads:
            split = values.reshape(heads[part], 2, -1, *values.shape[1:])
            values = split.swapaxes(1, 2).reshape(values.shape)
        if ".experts." in name:
            before, after = name.split(".experts.")
            name = f"{before}.experts.{after.split('.', 1)[1]}"
            experts.setdefault(name, []).append(values)
            continue
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert renamed is not None, name
        found[renamed] = values
    for name, parts in experts.items():
        renamed = names.get_name(name, try_suffixes=(".weight",))
        assert renamed is not None, name
        found[renamed] = np.stack(parts)
    if config.get("tie_word_embeddings"):
        found.pop("output.weight", None)
    return found


def _by_expert(item: tuple[str, Floats]) -> tuple[str, int]:
    before, _, after = item[0].partition(".experts.")
    number, _, part = after.partition(".")
    return f"{before}.{part}", int(number or 0)
