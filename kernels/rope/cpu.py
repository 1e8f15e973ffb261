"""Rotary embedding of queries and keys together, in as few eager calls as it takes."""

import torch
from torch import Tensor


def rope(q: Tensor, k: Tensor, cos_sin_cache: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    tokens, query_heads, head_dim = q.shape
    cos_sin = cos_sin_cache.index_select(0, positions).view(tokens, 1, 2, head_dim // 2)
    cos, sin = cos_sin[:, :, :1], cos_sin[:, :, 1]
    heads = torch.cat((q, k), dim=1).float()
    halves = heads.view(tokens, heads.shape[1], 2, head_dim // 2)
    first, second = halves.unbind(2)
    rotated = halves * cos
    rotated_first, rotated_second = rotated.unbind(2)
    rotated_first.addcmul_(second, sin, value=-1.0)
    rotated_second.addcmul_(first, sin)
    heads = rotated.flatten(2).to(q.dtype)
    return heads[:, :query_heads], heads[:, query_heads:]
