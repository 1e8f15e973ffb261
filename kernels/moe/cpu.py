"""Eager torch has nothing faster to say it with than the reference."""

from kernels.moe.reference import expert_mlp, route_experts

__all__ = ["expert_mlp", "route_experts"]
