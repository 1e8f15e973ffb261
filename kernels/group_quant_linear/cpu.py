"""Eager torch has nothing faster to say than the reference does."""

from kernels.group_quant_linear.reference import group_quant_linear

__all__ = ["group_quant_linear"]
