"""SiLU(gate) * up and GELU(gate) * up in C++ for fp32; other dtypes run eager torch."""

import torch
from torch import Tensor

from kernels.gated_mul import cpu
from kernels.native import function


def silu_mul(gate_up: Tensor) -> Tensor:
    if gate_up.dtype != torch.float32:
        return cpu.silu_mul(gate_up)
    return _call("silu_mul_f32", gate_up.contiguous())


def gelu_mul(gate_up: Tensor) -> Tensor:
    if gate_up.dtype != torch.float32:
        return cpu.gelu_mul(gate_up)
    return _call("gelu_mul_f32", gate_up.contiguous())


def _call(name: str, gate_up: Tensor) -> Tensor:
    *leading, width = gate_up.shape
    out = gate_up.new_empty((*leading, width // 2))
    rows = gate_up.numel() // max(width, 1)
    function(name)(gate_up.data_ptr(), out.data_ptr(), rows, width // 2)
    return out
