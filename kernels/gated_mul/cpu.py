"""SiLU(gate) * up and GELU(gate) * up in two eager calls."""

from torch import Tensor
from torch.nn.functional import gelu, silu


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return silu(gate).mul_(up).to(gate_up.dtype)


def gelu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gelu(gate, approximate="tanh").mul_(up).to(gate_up.dtype)
