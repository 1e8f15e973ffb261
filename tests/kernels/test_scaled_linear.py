"""scaled_linear: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, encode, random, reference
from tolerances import assert_close
from torch import Tensor

from kernels.errors import KernelError
from kernels.scaled_linear import scaled_linear

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CODES = [torch.int8, torch.float8_e4m3fn]


def _weight(channels: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return encode(random(channels, inputs, seed=1) / max(inputs, 1) ** 0.5, dtype)


@pytest.mark.parametrize("rows", [0, 1, 17, 33])
@pytest.mark.parametrize(("channels", "inputs"), [(5, 7), (70, 129), (1, 1), (64, 256)])
@pytest.mark.parametrize("code_dtype", CODES, ids=str)
def test_scaled_linear_equals_the_reference(
    runner: Runner, rows: int, channels: int, inputs: int, code_dtype: torch.dtype
) -> None:
    """Few rows and many, odd sizes too, give the reference's numbers."""
    arguments = (random(rows, inputs), *_weight(channels, inputs, code_dtype))
    assert_close(runner("scaled_linear", *arguments), reference("scaled_linear", *arguments))


@pytest.mark.parametrize("code_dtype", CODES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaled_linear_keeps_dtype_and_leading_dimensions(
    runner: Runner, dtype: torch.dtype, code_dtype: torch.dtype
) -> None:
    """Any float dtype and number of dimensions passes through; the bias is added once."""
    x, bias = random(2, 3, 48, dtype=dtype), random(20, seed=5)
    x[1, 2] = 0
    arguments = (x, *_weight(20, 48, code_dtype), bias)
    actual = runner("scaled_linear", *arguments)
    assert actual.shape == (2, 3, 20)
    assert_close(actual, reference("scaled_linear", *arguments))


@pytest.mark.parametrize("code_dtype", CODES, ids=str)
def test_scaled_linear_comes_near_the_unrounded_product(
    runner: Runner, code_dtype: torch.dtype
) -> None:
    """Rounding both sides to 8 bits costs a few percent of the result, not more."""
    x, weight = random(40, 256), random(32, 256, seed=1)
    actual = runner("scaled_linear", x, *encode(weight, code_dtype)).cpu()
    exact = x @ weight.t()
    assert (actual - exact).norm() < (0.02 if code_dtype == torch.int8 else 0.06) * exact.norm()


def test_scaled_linear_of_int8_is_exact_in_its_codes(runner: Runner) -> None:
    """Long sums of large products pass 24 bits, and must not be rounded on the way."""
    x = torch.full((3, 4100), 127.0)
    x[:, ::2] = 126.0
    weight = torch.full((2, 4100), 127, dtype=torch.int8)
    weight[1, ::3] = -3
    actual = runner("scaled_linear", x, weight, torch.ones(2)).cpu()
    wanted = (x.double() @ weight.double().t()).float()
    assert torch.equal(actual, wanted)


def test_scaled_linear_refuses_what_does_not_fit() -> None:
    """Sizes and dtypes are checked before any kernel."""
    weight, scale = _weight(6, 8, torch.int8)
    for call, says in (
        (lambda: scaled_linear(random(2, 7), weight, scale), "weight is"),
        (lambda: scaled_linear(random(2, 8), weight.float(), scale), "weight is torch"),
        (lambda: scaled_linear(random(2, 8), weight, scale[:1]), "scale is"),
        (lambda: scaled_linear(random(2, 6), weight.t(), scale), "contiguous"),
    ):
        with pytest.raises(KernelError, match=says):
            call()
