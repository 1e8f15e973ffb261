"""silu_mul and gelu_mul: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close

OPS = ("silu_mul", "gelu_mul")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (2, 3, 10), (0, 8), (5, 1030), (6,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gates_equal_the_reference(
    runner: Runner, op: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Any even row size gives the reference's numbers."""
    gate_up = random(*shape, dtype=dtype)
    assert_close(runner(op, gate_up), reference(op, gate_up))


@pytest.mark.parametrize("op", OPS)
def test_gates_saturate_without_nan(runner: Runner, op: str) -> None:
    """Very negative gates close and very positive ones pass their value."""
    gate_up = torch.tensor([[-200.0, 200.0, 3.0, 3.0]])
    assert_close(runner(op, gate_up), torch.tensor([[0.0, 600.0]]))


def test_reference_is_the_gelu_of_torch() -> None:
    """In its form with tanh."""
    gate_up = random(4, 40)
    gate, up = gate_up.chunk(2, dim=-1)
    wanted = torch.nn.functional.gelu(gate, approximate="tanh") * up
    assert_close(reference("gelu_mul", gate_up), wanted)
