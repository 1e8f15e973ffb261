"""What the tensors of a Hugging Face checkpoint are called in a .gguf file. No torch."""

import re
from typing import Final, NamedTuple

_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT: Final = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")
_WHOLE: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_EXPERTS: Final = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}


class Place(NamedTuple):
    """Where a tensor lies."""

    name: str
    expert: int | None = None
    """Its place in a tensor that holds those of all experts."""


def place_of(name: str) -> Place:
    """Translate a name; one that we do not know stays as it is."""
    if name in _WHOLE:
        return Place(_WHOLE[name])
    match = _LAYER.fullmatch(name)
    if match is None:
        return Place(name)
    layer, part, kind = match.groups()
    expert = _EXPERT.fullmatch(part)
    if expert is not None:
        return Place(f"blk.{layer}.{_EXPERTS.get(expert[2], part)}.{kind}", int(expert[1]))
    return Place(f"blk.{layer}.{_PARTS.get(part, part)}.{kind}")
