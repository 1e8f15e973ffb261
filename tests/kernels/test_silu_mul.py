"""silu_mul: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close


@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (2, 3, 10), (0, 8), (5, 1030), (6,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_silu_mul_equals_the_reference(
    runner: Runner, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Any even row size gives the reference's numbers."""
    gate_up = random(*shape, dtype=dtype)
    assert_close(runner("silu_mul", gate_up), reference("silu_mul", gate_up))


def test_silu_mul_saturates_without_nan(runner: Runner) -> None:
    """Very negative gates close and very positive ones pass their value."""
    gate_up = torch.tensor([[-200.0, 200.0, 3.0, 3.0]])
    assert_close(runner("silu_mul", gate_up), torch.tensor([[0.0, 600.0]]))
