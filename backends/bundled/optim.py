"""Muon for the matrices of the layers, AdamW for the rest, and the learning-rate schedules."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backends.bundled.config import TrainPlan


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Move each matrix of [N, R, C] towards the nearest one whose singular values are all one.

    Source: Jordan et al. 2024, "Muon", the quintic Newton-Schulz iteration.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    out: Tensor = x.mT if tall else x
    return out


class Muon(Optimizer):
    """Momentum whose update is orthogonalized; matrices of one shape go through it together."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update to every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        momentum, lr = group["momentum"], group["lr"]
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
            buffer.lerp_(parameter.grad, 1 - momentum)
            updates.append(parameter.grad.lerp(buffer, momentum))
        rows, columns = parameters[0].shape
        scale = max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, orthogonalize(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(update.to(parameter.dtype), alpha=-lr * scale)


def make_optimizers(model: nn.Module, plan: TrainPlan) -> list[Optimizer]:
    """Split the parameters: Muon takes the layers' matrices, AdamW the embedding and the norms."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "layers." in name else rest).append(parameter)
    adam = partial(torch.optim.AdamW, betas=(0.9, 0.95), eps=1e-10, fused=False)
    first: Optimizer
    if plan.optimizer == "muon":
        first = Muon(matrices, plan.muon_lr, 0.95, plan.weight_decay)
    else:
        first = adam(matrices, lr=plan.matrix_adam_lr, weight_decay=plan.weight_decay)
    return [first, adam(rest, lr=plan.adam_lr, weight_decay=0.0)]


def peak_rates(plan: TrainPlan) -> tuple[float, float]:
    """Return the peak learning rates of the optimizers that `make_optimizers` makes."""
    return (plan.muon_lr if plan.optimizer == "muon" else plan.matrix_adam_lr), plan.adam_lr


def lr_factor(step: int, plan: TrainPlan) -> float:
    """Return the learning rate of `step` as a share of its peak.

    After the warm-up either stable and then falling in a line, or half a cosine; both end at zero.
    """
    warm = min(1.0, (step + 1) / max(1, plan.warmup_steps))
    if plan.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / plan.steps)))
    decay_steps = max(1.0, plan.steps * plan.decay_fraction)
    return min(warm, max(0.0, (plan.steps - step) / decay_steps), 1.0)
