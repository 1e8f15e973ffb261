"""Random Llama-shaped models, the same int8 weights written for our engine and for llama.cpp.

Every weight is code * scale, with one scale per output channel that fp16 can hold: the blocks of
llama.cpp's Q8_0 repeat it, so that both compute with exactly the same numbers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

BLOCK = 32
"""Weights under one scale in Q8_0."""


@dataclass(frozen=True)
class Shape:
    """One model's sizes."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int = 2048

    @property
    def config(self) -> dict[str, Any]:
        """The folder's config.json."""
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "dtype": "float32",
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            },
        }


SHAPES = (
    Shape("20M", vocabulary=4096, hidden=448, layers=8, heads=7, feed_forward=1216),
    Shape("125M", vocabulary=32000, hidden=768, layers=12, heads=12, feed_forward=2048),
)


_GGUF_PARTS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


class Weights:
    """Draws a model's tensors and writes them twice."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape = shape
        self._random = np.random.default_rng(seed)
        self.codes: dict[str, NDArray[np.int8]] = {}
        self.scales: dict[str, NDArray[np.float16]] = {}
        hidden, middle = shape.hidden, shape.feed_forward
        self.embedding = self._random.standard_normal(
            (shape.vocabulary, hidden), dtype=np.float32
        ).astype(np.float16)
        for layer in range(shape.layers):
            prefix = f"model.layers.{layer}."
            for part in ("q", "k", "v", "o"):
                self._draw(f"{prefix}self_attn.{part}_proj", hidden, hidden)
            self._draw(f"{prefix}mlp.gate_proj", middle, hidden)
            self._draw(f"{prefix}mlp.up_proj", middle, hidden)
            self._draw(f"{prefix}mlp.down_proj", hidden, middle)
        self._draw("lm_head", shape.vocabulary, hidden)

    def _draw(self, name: str, channels: int, inputs: int) -> None:
        codes = self._random.normal(0.0, 40.0, (channels, inputs)).round().clip(-127, 127)
        self.codes[name] = codes.astype(np.int8)
        spread = self._random.uniform(0.8, 1.2, channels) / (40.0 * inputs**0.5)
        self.scales[name] = spread.astype(np.float16)

    @property
    def count(self) -> int:
        """Weights that one token is multiplied by."""
        return sum(codes.size for codes in self.codes.values())

    def save_folder(self, folder: Path) -> None:
        """Write a Hugging Face folder in the compressed-tensors layout, without a tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        ones = torch.ones(self.shape.hidden)
        tensors = {
            "model.embed_tokens.weight": torch.from_numpy(self.embedding).float(),
            "model.norm.weight": ones,
        }
        for name, codes in self.codes.items():
            tensors[f"{name}.weight"] = torch.from_numpy(codes)
            scale = torch.from_numpy(self.scales[name]).float()
            tensors[f"{name}.weight_scale"] = scale.unsqueeze(1).contiguous()
        for layer in range(self.shape.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{norm}.weight"] = ones.clone()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.shape.config, indent=2))

    def save_gguf(self, file: Path) -> None:
        """Write llama.cpp's file, linear layers in Q8_0."""
        from gguf import GGMLQuantizationType, GGUFWriter

        shape = self.shape
        writer = GGUFWriter(str(file), "llama")
        writer.add_context_length(shape.positions)
        writer.add_embedding_length(shape.hidden)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.feed_forward)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.heads)
        writer.add_rope_dimension_count(shape.hidden // shape.heads)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(shape.vocabulary)
        writer.add_tokenizer_model("no_vocab")
        writer.add_file_type(7)  # mostly Q8_0
        ones = np.ones(shape.hidden, dtype=np.float32)
        writer.add_tensor("token_embd.weight", self.embedding)
        writer.add_tensor("output_norm.weight", ones)
        for layer in range(shape.layers):
            writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
            writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
        for name in self.codes:
            writer.add_tensor(
                _gguf_name(name), self._blocks(name), raw_dtype=GGMLQuantizationType.Q8_0
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _blocks(self, name: str) -> NDArray[np.uint8]:
        """Q8_0: an fp16 scale and 32 codes, again and again; q and k in llama.cpp's order."""
        codes, scales = self.codes[name], self.scales[name]
        if name.endswith(("q_proj", "k_proj")):
            codes, scales = self._paired(codes), self._paired(scales)
        channels, inputs = codes.shape
        blocks = np.empty((channels, inputs // BLOCK, 2 + BLOCK), dtype=np.uint8)
        blocks[:, :, :2] = scales.view(np.uint8).reshape(channels, 1, 2)
        blocks[:, :, 2:] = codes.view(np.uint8).reshape(channels, -1, BLOCK)
        return blocks.reshape(channels, -1)

    def _paired(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rotate pairs (2i, 2i + 1) where Hugging Face rotates (i, i + D/2)."""
        dim = self.shape.hidden // self.shape.heads
        split = rows.reshape(self.shape.heads, 2, dim // 2, *rows.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def _gguf_name(name: str) -> str:
    """The tensor's name in llama.cpp."""
    if name == "lm_head":
        return "output.weight"
    *_, layer, _, part = name.split(".")
    return f"blk.{layer}.{_GGUF_PARTS[part]}.weight"
