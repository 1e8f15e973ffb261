"""packed_linear: every implementation against the reference, and no row against another."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close

from kernels import native
from kernels.errors import DTypeError, ShapeError
from kernels.packed_linear import pack, packed_linear, unpack


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 9, 40, 150])
@pytest.mark.parametrize(("channels", "inputs"), [(5, 7), (64, 32), (70, 129), (1, 1)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_packed_linear_equals_the_reference(
    runner: Runner, rows: int, channels: int, inputs: int, biased: bool, dtype: torch.dtype
) -> None:
    """Few rows and many, odd sizes too, with a bias and without, weights of 32 and 16 bits."""
    weight = (random(channels, inputs, seed=1) / inputs**0.5).to(dtype)
    x, bias = random(rows, inputs), random(channels, seed=2).half() if biased else None
    arguments = (x, pack(weight), bias)
    actual = runner("packed_linear", *arguments, channels=channels)
    assert actual.shape == (rows, channels)
    assert_close(actual, reference("packed_linear", *arguments, channels=channels))


def test_packed_linear_keeps_leading_dimensions(runner: Runner) -> None:
    """Any number of leading dimensions passes through."""
    x, packed = random(2, 3, 16), pack(random(10, 16, seed=1) / 4)
    actual = runner("packed_linear", x, packed, None, channels=10)
    assert_close(actual, reference("packed_linear", x, packed, None, channels=10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unpack_gives_back_what_was_packed(dtype: torch.dtype) -> None:
    """Packing loses nothing."""
    weight = random(70, 9).to(dtype)
    assert torch.equal(unpack(pack(weight), 70, 9), weight)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_packed_linear_reads_16_bits_as_the_numbers_they_are(dtype: torch.dtype) -> None:
    """Every finite number gives the bits of the fp32 weight; tiles take those for zero that are
    subnormal in fp32 too."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    weight = torch.where(numbers.isfinite(), numbers, 0).view(64, 1024)
    x = torch.eye(1024)[:128]
    narrow, wide = (packed_linear(x, pack(w), channels=64) for w in (weight, weight.float()))
    tiny = torch.finfo(torch.float32).tiny
    normal = (wide == 0) | (wide.abs() >= tiny)
    assert torch.equal(narrow[normal], wide[normal])
    assert torch.equal(wide, weight.float()[:, :128].t())
    assert (narrow - wide).abs().max() < tiny


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
def test_packed_linear_splits_numbers_beside_16_bits_without_loss() -> None:
    """Every bit of an fp32 activation counts beside a bf16 weight; no number becomes another."""
    x = torch.eye(40) * (1 + torch.arange(40) * 2.0**-23)[:, None] * 2.0 ** torch.arange(-20, 20)
    x[7, 7], x[8, 8], x[9, 9] = float("inf"), float("nan"), -float("inf")
    x[10, 10] = torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)
    packed = pack(torch.ones(33, 40).bfloat16())
    wanted = x.sum(dim=1, keepdim=True).expand(40, 33)
    together = packed_linear(x, packed, channels=33)
    torch.testing.assert_close(together, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@pytest.mark.parametrize("rows", [2, 7, 16, 23, 33, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_linear_answers_a_row_alike_in_any_batch(rows: int, dtype: torch.dtype) -> None:
    """A row's result is the same bit for bit, whatever is beside it."""
    x, packed = random(rows, 200), pack(random(70, 200, seed=1).to(dtype))
    together = packed_linear(x, packed, channels=70)
    for row in range(rows):
        assert torch.equal(packed_linear(x[row : row + 1], packed, channels=70)[0], together[row])


def test_packed_linear_refuses_what_does_not_fit() -> None:
    """Sizes and dtypes are checked before any implementation runs."""
    packed = pack(random(40, 8))
    with pytest.raises(ShapeError, match="packed is"):
        packed_linear(random(1, 9), packed, channels=40)
    with pytest.raises(ShapeError, match=r"bias is \[3\]"):
        packed_linear(random(1, 8), packed, random(3), channels=40)
    with pytest.raises(DTypeError, match=r"x is torch\.float16"):
        packed_linear(random(1, 8).half(), packed, channels=40)
