"""Eager torch has nothing faster to say it with than the reference."""

from kernels.lora.reference import lora_add

__all__ = ["lora_add"]
