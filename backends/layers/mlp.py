"""Feed-forward blocks: SwiGLU or GeGLU, alone or as a mixture of experts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from backends.layers.linear import AnyLinear, Linear
from kernels.moe import expert_mlp, route_experts


class Mlp(NamedTuple):
    """down(gate(gate_up(x))), gate and up fused; the model runs it, with adapters between."""

    gate_up: AnyLinear
    down: AnyLinear
    gate: Callable[[Tensor], Tensor]
    """`silu_mul` or `gelu_mul`."""


class Experts:
    """A router sends each token through a few of many such blocks, kept as plain weights."""

    def __init__(
        self, router: Tensor, gate_up: Tensor, down: Tensor, *, top_k: int, renormalise: bool
    ) -> None:
        """Keep router [E, H], gate_up [E, 2F, H] and down [E, H, F]."""
        self.router = Linear(router)
        self.gate_up = gate_up
        self.down = down
        self.top_k = top_k
        self.renormalise = renormalise

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [T, H] to [T, H]."""
        weights, experts = route_experts(
            self.router(x), top_k=self.top_k, renormalise=self.renormalise
        )
        return expert_mlp(x, self.gate_up, self.down, weights, experts)

    @property
    def nbytes(self) -> int:
        """Bytes read to apply the block to one token."""
        return self.router.nbytes + self._per_token(self.gate_up.nbytes + self.down.nbytes)

    @property
    def num_weights(self) -> int:
        """Weights that one token is multiplied by."""
        entries = self.gate_up.numel() + self.down.numel()
        return self.router.num_weights + self._per_token(entries)

    def _per_token(self, total: int) -> int:
        return total * self.top_k // self.gate_up.shape[0]


def stack_experts(parts: list[Tensor]) -> Tensor:
    """[N, K] of every expert -> [E, N, K], one after the other as they are let go."""
    first = parts[0]
    stacked = torch.empty((len(parts), *first.shape), dtype=first.dtype, device=first.device)
    for index in range(len(parts)):
        stacked[index] = parts[index]
        parts[index] = first.new_empty(0)
    return stacked
