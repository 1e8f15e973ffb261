"""int4_linear: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close
from torch import Tensor

from kernels import native
from kernels.errors import KernelError
from kernels.int4_linear import int4_linear, pack

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _weight(channels: int, inputs: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero points that make results of about unit size."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(256, (channels, inputs // 2), generator=generator).to(torch.uint8)
    groups = inputs // group
    scale = (0.5 + torch.rand(channels, groups, generator=generator)) / (6 * inputs**0.5)
    zero = torch.randint(16, (channels, groups), generator=generator).to(torch.uint8)
    return codes, scale, zero


@pytest.mark.parametrize("rows", [0, 1, 3, 20])
@pytest.mark.parametrize(
    ("channels", "inputs", "group"), [(5, 16, 16), (70, 96, 48), (33, 256, 128), (8, 1120, 32)]
)
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
def test_int4_linear_equals_the_reference(
    runner: Runner, rows: int, channels: int, inputs: int, group: int, zeros: bool
) -> None:
    """One row and many, any group, with and without zero points, give the reference's numbers."""
    codes, scale, zero = _weight(channels, inputs, group)
    arguments = (random(rows, inputs), codes, scale, zero if zeros else None)
    assert_close(runner("int4_linear", *arguments), reference("int4_linear", *arguments))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (128, 64)])
def test_int4_linear_takes_zero_points_between_the_codes(
    runner: Runner, rows: int, inputs: int, group: int
) -> None:
    """In fp32, also beside all codes; with the packed weight and without."""
    codes, scale, zero = _weight(33, inputs, group)
    arguments = (random(rows, inputs), codes, scale, zero.float() * 1.37 - 2.6, random(33))
    assert_close(runner("int4_linear", *arguments), reference("int4_linear", *arguments))
    packed = pack(*arguments[1:4])
    actual = runner("int4_linear", *arguments, packed=packed)
    assert_close(actual, reference("int4_linear", *arguments, packed=packed))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int4_linear_keeps_dtype_and_adds_the_bias(
    runner: Runner, rows: int, dtype: torch.dtype
) -> None:
    """Activations, scales and bias may be of half precision; the result has x's dtype."""
    codes, scale, zero = _weight(24, 128, 64)
    arguments = (random(rows, 128, dtype=dtype), codes, scale.to(dtype), zero, random(24, seed=5))
    assert_close(runner("int4_linear", *arguments), reference("int4_linear", *arguments))


@pytest.mark.parametrize("rows", [1, 5])
def test_int4_linear_splits_a_long_sum(runner: Runner, rows: int) -> None:
    """A narrow layer with many inputs is summed in parts, to the same result."""
    codes, scale, zero = _weight(6, 4096, 128)
    arguments = (random(rows, 4096), codes, scale, zero)
    assert_close(runner("int4_linear", *arguments), reference("int4_linear", *arguments))


def test_int4_linear_reads_the_low_half_of_a_byte_first(runner: Runner) -> None:
    """Byte j holds inputs 2j and 2j + 1, in this order."""
    codes = torch.tensor([[0x21, 0x43, 0x65, 0x87, 0, 0, 0, 0]], dtype=torch.uint8)
    weight = runner("int4_linear", torch.eye(16), codes, torch.ones(1, 1)).flatten().tolist()
    assert weight == [-7, -6, -5, -4, -3, -2, -1, 0] + [-8] * 8


def test_int4_linear_refuses_what_does_not_fit() -> None:
    """Sizes and dtypes are checked before any kernel."""
    codes, scale, zero = _weight(6, 32, 16)
    for call, says in (
        (lambda: int4_linear(random(2, 30), codes, scale), "weight_int4 is"),
        (lambda: int4_linear(random(2, 32), codes.to(torch.int8), scale), "must be torch.uint8"),
        (lambda: int4_linear(random(2, 32), codes, scale.repeat(1, 2)), "multiple of 16"),
        (lambda: int4_linear(random(2, 32), codes, scale, zero[:, :1]), "zero is"),
    ):
        with pytest.raises(KernelError, match=says):
            call()


@pytest.mark.parametrize("rows", [0, 1, 3, 20, 150])
@pytest.mark.parametrize(
    ("channels", "inputs", "group"), [(5, 16, 16), (70, 96, 48), (33, 256, 128), (8, 1120, 32)]
)
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
def test_int4_linear_gives_the_same_with_a_packed_weight(
    runner: Runner, rows: int, channels: int, inputs: int, group: int, zeros: bool
) -> None:
    """The packed weight is the same weight; rows are rounded as the reference rounds them."""
    codes, scale, zero = _weight(channels, inputs, group)
    arguments = (random(rows, inputs), codes, scale, zero if zeros else None, random(channels))
    packed = pack(*arguments[1:4])
    actual = runner("int4_linear", *arguments, packed=packed)
    assert_close(actual, reference("int4_linear", *arguments, packed=packed))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
def test_int4_linear_answers_a_row_alike_in_any_batch() -> None:
    """With a packed weight a row's result is the same bit for bit, whatever is beside it."""
    x, (codes, scale, zero) = random(23, 256), _weight(70, 256, 64)
    packed = pack(codes, scale, zero)
    together = int4_linear(x, codes, scale, zero, packed=packed)
    for row in range(23):
        alone = int4_linear(x[row : row + 1], codes, scale, zero, packed=packed)
        assert torch.equal(alone[0], together[row])


def test_int4_linear_refuses_a_packed_weight_of_another_shape() -> None:
    """A packed weight belongs to its codes."""
    codes, scale, _ = _weight(40, 32, 16)
    with pytest.raises(KernelError, match="packed is"):
        int4_linear(random(1, 32), codes, scale, packed=torch.zeros(1, 8, dtype=torch.uint8))
    floats = torch.zeros_like(scale)
    with pytest.raises(KernelError, match="packed is"):
        int4_linear(random(1, 32), codes, scale, floats, packed=pack(codes, scale))
