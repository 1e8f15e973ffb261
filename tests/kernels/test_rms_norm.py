"""rms_norm and add_rms_norm: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 256), (3, 7), (5, 129), (2, 3, 24), (64,), (0, 32), (4, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_equals_the_reference(
    runner: Runner, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Any row size and number of rows, none included, gives the reference's numbers."""
    x, weight = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype, seed=1)
    assert_close(
        runner("rms_norm", x, weight, eps=1e-5), reference("rms_norm", x, weight, eps=1e-5)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm_equals_the_reference(
    runner: Runner, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Both the normed rows and the new residual are the reference's."""
    x, residual = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=2)
    weight = random(shape[-1], dtype=dtype, seed=1)
    actual = runner("add_rms_norm", x, residual, weight, eps=1e-6)
    expected = reference("add_rms_norm", x, residual, weight, eps=1e-6)
    assert_close(actual[0], expected[0])
    assert_close(actual[1], expected[1])


def test_rms_norm_adds_eps_to_the_mean_square(runner: Runner) -> None:
    """A row of zeros stays zero, and tiny rows are damped by eps."""
    x = torch.tensor([[0.0, 0.0], [3e-3, 4e-3]])
    expected = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    assert_close(runner("rms_norm", x, torch.ones(2), eps=1e-5), expected)


def test_add_rms_norm_leaves_its_inputs_alone(runner: Runner) -> None:
    """The residual passed in is not written."""
    x, residual = random(3, 8).to(runner.device), random(3, 8, seed=1).to(runner.device)
    before = x.clone(), residual.clone()
    runner("add_rms_norm", x, residual, torch.ones(8), eps=1e-5)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_rms_norm_takes_strided_rows(runner: Runner) -> None:
    """Rows may be a slice of wider ones."""
    x, weight = random(4, 20)[:, 3:11], random(8, seed=1)
    assert_close(
        runner("rms_norm", x, weight, eps=1e-5), reference("rms_norm", x, weight, eps=1e-5)
    )
