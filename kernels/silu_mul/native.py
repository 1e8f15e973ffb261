"""SiLU(gate) * up in C++ for fp32; other dtypes run eager torch."""

import torch
from torch import Tensor

from kernels.native import function
from kernels.silu_mul import cpu


def silu_mul(gate_up: Tensor) -> Tensor:
    if gate_up.dtype != torch.float32:
        return cpu.silu_mul(gate_up)
    gate_up = gate_up.contiguous()
    *leading, width = gate_up.shape
    out = gate_up.new_empty((*leading, width // 2))
    rows = gate_up.numel() // max(width, 1)
    function("silu_mul_f32")(gate_up.data_ptr(), out.data_ptr(), rows, width // 2)
    return out
