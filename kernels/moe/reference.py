"""Experts one after the other, each on the tokens that chose it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def route_experts(logits: Tensor, *, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    likelihood = logits.float().softmax(dim=-1)
    # A stable sort, and not topk: of equals the first.
    weights, experts = likelihood.sort(dim=-1, descending=True, stable=True)
    weights, experts = weights[:, :top_k], experts[:, :top_k]
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.contiguous(), experts.int().contiguous()


def expert_mlp(
    x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor
) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in sorted(set(experts.flatten().tolist())):
        tokens, places = (experts == expert).nonzero(as_tuple=True)
        gate, up = (x[tokens].float() @ gate_up[expert].float().t()).to(x.dtype).chunk(2, dim=-1)
        middle = (F.silu(gate.float()) * up.float()).to(x.dtype)
        result = middle.float() @ down[expert].float().t()
        out.index_add_(0, tokens, result * weights[tokens, places, None])
    return out.to(x.dtype)
