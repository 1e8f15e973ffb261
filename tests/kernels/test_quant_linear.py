"""quant_linear: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close
from torch import Tensor

from kernels.errors import KernelUnavailableError, ShapeError
from kernels.quant_linear import copies, quant_linear, unpack

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _weight(channels: int, inputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randint(-127, 128, (channels, inputs), dtype=torch.int8, generator=generator)
    # Results of about unit size, so that one absolute tolerance fits all.
    scale = torch.rand(channels, generator=generator) / (73 * inputs**0.5)
    return weight, scale


@pytest.mark.parametrize("rows", [0, 1, 3, 8, 9, 33])
@pytest.mark.parametrize(("channels", "inputs"), [(5, 7), (64, 32), (70, 129), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quant_linear_equals_the_reference(
    runner: Runner, rows: int, channels: int, inputs: int, dtype: torch.dtype
) -> None:
    """Few rows and many, odd sizes too, give the reference's numbers."""
    x = random(rows, inputs, dtype=dtype)
    arguments = (x, *_weight(channels, inputs))
    assert_close(runner("quant_linear", *arguments), reference("quant_linear", *arguments))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quant_linear_adds_the_bias(runner: Runner, rows: int, dtype: torch.dtype) -> None:
    """The bias is added to every row."""
    x, bias = random(rows, 32, dtype=dtype), random(24, seed=5)
    arguments = (x, *_weight(24, 32), bias)
    assert_close(runner("quant_linear", *arguments), reference("quant_linear", *arguments))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quant_linear_gives_the_same_with_a_dense_copy(
    runner: Runner, rows: int, dtype: torch.dtype
) -> None:
    """The dequantised copy is memory for speed: it changes no result beyond rounding."""
    weight, scale = _weight(24, 32)
    x, dense = random(rows, 32, dtype=dtype), (weight * scale[:, None]).to(dtype)
    assert_close(
        runner("quant_linear", x, weight, scale, dense=dense),
        reference("quant_linear", x, weight, scale),
    )


def test_quant_linear_keeps_leading_dimensions(runner: Runner) -> None:
    """Any number of leading dimensions passes through."""
    x = random(2, 3, 16)
    arguments = (x, *_weight(10, 16))
    actual = runner("quant_linear", *arguments)
    assert actual.shape == (2, 3, 10)
    assert_close(actual, reference("quant_linear", *arguments))


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 15, 16, 33, 140])
@pytest.mark.parametrize(("channels", "inputs"), [(5, 7), (64, 32), (70, 129), (1, 1), (96, 512)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quant_linear_gives_the_same_with_copies_made_for_speed(
    runner: Runner, rows: int, channels: int, inputs: int, dtype: torch.dtype
) -> None:
    """Whatever `copies` prepares on this machine changes no result beyond rounding."""
    x, (weight, scale) = random(rows, inputs, dtype=dtype), _weight(channels, inputs)
    made = copies(weight, scale, dtype)
    actual = runner("quant_linear", x, weight, scale, **made._asdict())
    assert_close(actual, reference("quant_linear", x, weight, scale, packed=made.packed))


def test_quant_linear_loses_next_to_nothing_to_rounded_rows() -> None:
    """16 bits per row are nearer to fp32 than half precision is, even beside a large value."""
    x, (weight, scale) = random(64, 448), _weight(96, 448)
    x[:, 7] *= 30
    exact = reference("quant_linear", x.double(), weight, scale).float()
    rounded = reference("quant_linear", x, weight, scale, packed=weight)
    half = reference("quant_linear", x.half().float(), weight, scale)
    error, half_error = (rounded - exact).norm(), (half - exact).norm()
    assert error < 1e-3 * exact.norm()
    assert error < half_error


@pytest.mark.parametrize("rows", [1, 5, 16, 23, 150])
def test_quant_linear_answers_a_row_alike_in_any_batch(rows: int) -> None:
    """With fp32 activations a row's result is the same bit for bit, whatever is beside it."""
    x, (weight, scale) = random(rows, 200), _weight(70, 200)
    made = copies(weight, scale, torch.float32)
    if made.packed is None:
        pytest.skip("C++ kernels cannot be built here")
    together = quant_linear(x, weight, scale, **made._asdict())
    for row in range(rows):
        alone = quant_linear(x[row : row + 1], weight, scale, **made._asdict())
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_quant_linear_does_not_hide_a_nan_in_a_rounded_row(bad: float) -> None:
    """A row that is no number stays none, and the rows beside it stay as they are."""
    x, (weight, scale) = random(3, 100), _weight(40, 100)
    made = copies(weight, scale, torch.float32)
    before = quant_linear(x, weight, scale, **made._asdict())
    x[1, 50] = bad
    after = quant_linear(x, weight, scale, **made._asdict())
    assert after[1].isnan().all()
    assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_quant_linear_refuses_a_packed_weight_of_another_shape() -> None:
    """A packed weight belongs to its int8 weight."""
    weight, scale = _weight(40, 8)
    with pytest.raises(ShapeError, match="packed is"):
        quant_linear(random(1, 8), weight, scale, packed=torch.zeros(1, 8 * 32, dtype=torch.int8))


@pytest.mark.parametrize(("channels", "inputs"), [(5, 17), (70, 200), (64, 64)])
def test_packed_int8_weight_holds_all_codes(channels: int, inputs: int) -> None:
    """So that they may be given up: C++ multiplies rows of fp32 by the packed weight alone."""
    x, (weight, scale) = random(3, inputs), _weight(channels, inputs)
    made = copies(weight, scale, torch.float32)
    if made.packed is None:
        pytest.skip("C++ kernels cannot be built here")
    assert torch.equal(unpack(made.packed, channels, inputs), weight)
    gone = weight.to("meta")
    alone = quant_linear(x, gone, scale, packed=made.packed)
    assert torch.equal(alone, quant_linear(x, weight, scale, packed=made.packed))
    for rows, packed in ((x, None), (x.bfloat16(), made.packed)):
        with pytest.raises(KernelUnavailableError, match="were given up"):
            quant_linear(rows, gone, scale, packed=packed)
