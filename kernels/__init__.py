"""The engine's inner loops: each op has a plain reference, a CPU path and a Triton kernel.

Import an op from its own folder: ``from kernels.rms_norm import rms_norm``.
"""
