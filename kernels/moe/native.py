"""Experts in C++ for fp32 and few rows of each; the rest is eager torch."""

from typing import Final

import torch
from torch import Tensor

from kernels.moe import cpu
from kernels.native import function, require_ok, threads_for

_MOST_ROWS_OF_EXPERT: Final = 32
"""On average; with more, torch's matrix products are faster."""


def route_experts(logits: Tensor, *, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    if logits.dtype != torch.float32:
        return cpu.route_experts(logits, top_k=top_k, renormalise=renormalise)
    tokens, count = logits.shape
    weights = torch.empty(tokens, top_k, dtype=torch.float32)
    experts = torch.empty(tokens, top_k, dtype=torch.int32)
    function("route_experts_f32")(
        logits.data_ptr(),
        weights.data_ptr(),
        experts.data_ptr(),
        tokens,
        count,
        top_k,
        renormalise,
    )
    return weights, experts


def expert_mlp(
    x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor
) -> Tensor:
    tokens, hidden = x.shape
    count, _, features = down.shape
    slots = experts.numel()
    if x.dtype != torch.float32 or not slots or slots > _MOST_ROWS_OF_EXPERT * count:
        return cpu.expert_mlp(x, gate_up, down, weights, experts)
    x = x if x.stride(1) == 1 else x.contiguous()
    weights, experts = weights.contiguous(), experts.contiguous()
    out = torch.empty(tokens, hidden)
    outcome = function("expert_mlp_f32")(
        x.data_ptr(),
        gate_up.data_ptr(),
        down.data_ptr(),
        weights.data_ptr(),
        experts.data_ptr(),
        out.data_ptr(),
        x.stride(0),
        tokens,
        experts.shape[1],
        count,
        hidden,
        features,
        threads_for(3 * slots * hidden * features),
    )
    require_ok(outcome)
    return out
