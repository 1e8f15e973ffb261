"""Greedy answers from the training-time model, many prompts at once; for checks only."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from backends.bundled.attention import rotate
from backends.bundled.model import Block, Llama
from backends.bundled.tokenizer import EOS_ID, IM_END_ID, prompt_text

MAX_ROWS = 256


class Answer(NamedTuple):
    """What a model said, and whether it ended its turn by itself."""

    text: str
    ended: bool


def _attend(block: Block, x: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor]) -> Tensor:
    """Attend x [B, T, hidden] to itself and to `past` (keys, values), which grows by x."""
    rows, length, _ = x.shape
    attention, size = block.self_attn, block.self_attn.spec.head_dim
    q = attention.q_proj(x).view(rows, length, -1, size).transpose(1, 2)
    k = attention.k_proj(x).view(rows, length, -1, size).transpose(1, 2)
    v = attention.v_proj(x).view(rows, length, -1, size).transpose(1, 2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if past:
        k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
    past[:] = [k, v]
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, enable_gqa=True)
    out: Tensor = attention.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
    return out


def next_tokens(model: Llama, ids: Tensor, past: list[list[Tensor]], start: int) -> Tensor:
    """Return the likeliest next token [B] after ids [B, T], which begin at position `start`."""
    x = model.embed_tokens(ids)
    cos, sin = model.cos[start : start + ids.shape[1]], model.sin[start : start + ids.shape[1]]
    for layer, kept in zip(model.layers, past, strict=True):
        block = cast(Block, layer)
        x = x + _attend(block, block.input_layernorm(x), cos, sin, kept)
        x = x + block.mlp(block.post_attention_layernorm(x))
    return F.linear(model.norm(x[:, -1]), model.embed_tokens.weight).argmax(dim=-1)


def _complete(model: Llama, prompts: Tensor, max_new_tokens: int) -> list[list[int]]:
    """Continue prompts [B, T] greedily, each up to and with its end of turn."""
    past: list[list[Tensor]] = [[] for _ in model.layers]
    written: list[list[int]] = [[] for _ in prompts]
    alive, ids, start = torch.arange(len(prompts)), prompts, 0
    for _ in range(max_new_tokens):
        chosen = next_tokens(model, ids, past, start)
        start += ids.shape[1]
        for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
            written[row].append(token)
        going = (chosen != IM_END_ID) & (chosen != EOS_ID)
        if not going.any():
            break
        if not going.all():
            alive, chosen = alive[going], chosen[going]
            past = [[kept[going] for kept in pair] for pair in past]
        ids = chosen[:, None]
    return written


@torch.inference_mode()
def answer_all(
    model: Llama, tokenizer: Tokenizer, prompts: Sequence[str], *, max_new_tokens: int = 96
) -> list[Answer]:
    """Answer each prompt as a chat of one user message, greedily, in fp32."""
    by_length: dict[int, list[int]] = defaultdict(list)
    ids = [e.ids for e in tokenizer.encode_batch_fast([prompt_text(p) for p in prompts])]
    for index, tokens in enumerate(ids):
        by_length[len(tokens)].append(index)
    answers: list[Answer] = [Answer("", False)] * len(prompts)
    for same in by_length.values():
        for first in range(0, len(same), MAX_ROWS):
            part = same[first : first + MAX_ROWS]
            written = _complete(model, torch.tensor([ids[i] for i in part]), max_new_tokens)
            for index, tokens in zip(part, written, strict=True):
                ended = tokens[-1] in (IM_END_ID, EOS_ID)
                text = tokenizer.decode(tokens[:-1] if ended else tokens)
                answers[index] = Answer(text, ended)
    return answers
