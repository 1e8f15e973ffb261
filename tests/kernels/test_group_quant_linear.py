"""group_quant_linear: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close
from torch import Tensor

from kernels import native
from kernels.dispatch import ENV_OVERRIDE, forget_choices
from kernels.errors import KernelError, KernelUnavailableError
from kernels.group_quant_linear import group_quant_linear, pack, unpack
from kernels.group_quant_linear.reference import dequantise

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = pytest.mark.parametrize("bits", [4, 8])


def _weight(channels: int, inputs: int, group: int, bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero points that make results of about unit size."""
    generator = torch.Generator().manual_seed(3)
    groups = inputs // group
    if bits == 8:
        codes = torch.randint(-128, 128, (channels, inputs), generator=generator).to(torch.int8)
    else:
        codes = torch.randint(256, (channels, inputs // 2), generator=generator).to(torch.uint8)
    scale = 0.5 + torch.rand(channels, groups, generator=generator)
    if bits == 8:
        zero = 10.0 * torch.randint(-4, 5, (channels, groups), generator=generator)
        return codes, scale / (90 * inputs**0.5), zero
    zero = torch.randint(16, (channels, groups), generator=generator).to(torch.uint8)
    return codes, scale / (6 * inputs**0.5), zero


@pytest.mark.parametrize("rows", [0, 1, 3, 20])
@pytest.mark.parametrize(
    ("channels", "inputs", "group"), [(5, 16, 16), (70, 96, 48), (33, 256, 128), (8, 1120, 32)]
)
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@WIDTHS
def test_group_quant_linear_equals_the_reference(
    runner: Runner, rows: int, channels: int, inputs: int, group: int, zeros: bool, bits: int
) -> None:
    """One row and many, any group, with and without zero points, give the reference's numbers."""
    codes, scale, zero = _weight(channels, inputs, group, bits)
    arguments = (random(rows, inputs), codes, scale, zero if zeros else None)
    assert_close(
        runner("group_quant_linear", *arguments), reference("group_quant_linear", *arguments)
    )


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (128, 64)])
@WIDTHS
def test_group_quant_linear_takes_zero_points_between_the_codes(
    runner: Runner, rows: int, inputs: int, group: int, bits: int
) -> None:
    """In fp32, also beside all codes; with the packed weight and without."""
    codes, scale, zero = _weight(33, inputs, group, bits)
    arguments = (random(rows, inputs), codes, scale, zero.float() * 1.37 - 2.6, random(33))
    assert_close(
        runner("group_quant_linear", *arguments), reference("group_quant_linear", *arguments)
    )
    packed = pack(*arguments[1:4])
    actual = runner("group_quant_linear", *arguments, packed=packed)
    assert_close(actual, reference("group_quant_linear", *arguments, packed=packed))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@WIDTHS
def test_group_quant_linear_keeps_dtype_and_adds_the_bias(
    runner: Runner, rows: int, dtype: torch.dtype, bits: int
) -> None:
    """Activations, scales and bias may be of half precision; the result has x's dtype."""
    codes, scale, zero = _weight(24, 128, 64, bits)
    arguments = (random(rows, 128, dtype=dtype), codes, scale.to(dtype), zero, random(24, seed=5))
    assert_close(
        runner("group_quant_linear", *arguments), reference("group_quant_linear", *arguments)
    )


@pytest.mark.parametrize("rows", [1, 5])
@WIDTHS
def test_group_quant_linear_splits_a_long_sum(runner: Runner, rows: int, bits: int) -> None:
    """A narrow layer with many inputs is summed in parts, to the same result."""
    codes, scale, zero = _weight(6, 4096, 128, bits)
    arguments = (random(rows, 4096), codes, scale, zero)
    assert_close(
        runner("group_quant_linear", *arguments), reference("group_quant_linear", *arguments)
    )


def test_group_quant_linear_reads_the_low_half_of_a_byte_first(runner: Runner) -> None:
    """Byte j holds inputs 2j and 2j + 1, in this order."""
    codes = torch.tensor([[0x21, 0x43, 0x65, 0x87, 0, 0, 0, 0]], dtype=torch.uint8)
    weight = runner("group_quant_linear", torch.eye(16), codes, torch.ones(1, 1))
    assert weight.flatten().tolist() == [-7, -6, -5, -4, -3, -2, -1, 0] + [-8] * 8


def test_group_quant_linear_refuses_what_does_not_fit() -> None:
    """Sizes and dtypes are checked before any kernel."""
    (codes, scale, zero), (wide, _, _) = _weight(6, 32, 16), _weight(6, 32, 16, 8)
    x = random(2, 32)
    for call, says in (
        (lambda: group_quant_linear(random(2, 30), codes, scale), "codes are"),
        (lambda: group_quant_linear(random(2, 64), wide, scale), r"need \[N, K\] and"),
        (lambda: group_quant_linear(x, codes.to(torch.int16), scale), "must be torch.uint8"),
        (lambda: group_quant_linear(x, codes, scale.repeat(1, 2)), "multiple of 16"),
        (lambda: group_quant_linear(x, codes, scale, zero[:, :1]), "zero is"),
        (lambda: group_quant_linear(x, wide, scale, zero), "must be torch.float32"),
        (
            lambda: group_quant_linear(x, wide, scale, packed=pack(codes, scale)),
            "must be torch.int8",
        ),
    ):
        with pytest.raises(KernelError, match=says):
            call()


@pytest.mark.parametrize("rows", [0, 1, 3, 20, 150])
@pytest.mark.parametrize(
    ("channels", "inputs", "group"), [(5, 16, 16), (70, 96, 48), (33, 256, 128), (8, 1120, 32)]
)
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@WIDTHS
def test_group_quant_linear_gives_the_same_with_a_packed_weight(
    runner: Runner, rows: int, channels: int, inputs: int, group: int, zeros: bool, bits: int
) -> None:
    """The packed weight is the same weight; rows are rounded as the reference rounds them."""
    codes, scale, zero = _weight(channels, inputs, group, bits)
    arguments = (random(rows, inputs), codes, scale, zero if zeros else None, random(channels))
    packed = pack(*arguments[1:4])
    actual = runner("group_quant_linear", *arguments, packed=packed)
    assert_close(actual, reference("group_quant_linear", *arguments, packed=packed))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@WIDTHS
def test_group_quant_linear_answers_a_row_alike_in_any_batch(bits: int) -> None:
    """With a packed weight a row's result is the same bit for bit, whatever is beside it."""
    x, (codes, scale, zero) = random(23, 256), _weight(70, 256, 64, bits)
    packed = pack(codes, scale, zero)
    together = group_quant_linear(x, codes, scale, zero, packed=packed)
    for row in range(23):
        alone = group_quant_linear(x[row : row + 1], codes, scale, zero, packed=packed)
        assert torch.equal(alone[0], together[row])


def test_group_quant_linear_refuses_a_packed_weight_of_another_shape() -> None:
    """A packed weight belongs to its codes."""
    codes, scale, _ = _weight(40, 32, 16)
    with pytest.raises(KernelError, match="packed is"):
        group_quant_linear(random(1, 32), codes, scale, packed=torch.zeros(1, 8, dtype=torch.uint8))
    floats = torch.zeros_like(scale)
    with pytest.raises(KernelError, match="packed is"):
        group_quant_linear(random(1, 32), codes, scale, floats, packed=pack(codes, scale))


@WIDTHS
@pytest.mark.parametrize("zeros", ["none", "integers", "floats"])
@pytest.mark.parametrize(("channels", "inputs", "group"), [(5, 16, 16), (70, 96, 48), (64, 64, 32)])
def test_packed_weight_holds_all_of_the_weight(
    channels: int, inputs: int, group: int, zeros: str, bits: int
) -> None:
    """So that nothing else of it has to stay in memory."""
    codes, scale, given = _weight(channels, inputs, group, bits)
    zero = {"none": None, "integers": given, "floats": given.float() - 0.3}[zeros]
    floats = zero is not None and zero.is_floating_point()
    packed = pack(codes, scale, zero)
    kept = unpack(packed, channels, inputs, group, float_zeros=floats)
    assert torch.equal(kept[0], codes)
    assert torch.equal(kept[1], scale)
    assert torch.equal(dequantise(*kept), dequantise(codes, scale, zero))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@WIDTHS
def test_cpp_reads_nothing_but_the_packed_weight(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codes themselves may be gone; who would need them is refused."""
    weight, x = _weight(40, 64, 32, bits), random(3, 64)
    packed = pack(*weight)
    gone = [part.to("meta") for part in weight]
    assert torch.equal(
        group_quant_linear(x, *gone, packed=packed), group_quant_linear(x, *weight, packed=packed)
    )
    with pytest.raises(KernelUnavailableError, match="were given up"):
        group_quant_linear(x, *gone)
    monkeypatch.setenv(ENV_OVERRIDE, "reference")
    forget_choices()
    try:
        with pytest.raises(KernelUnavailableError, match="were given up"):
            group_quant_linear(x, *gone, packed=packed)
    finally:
        monkeypatch.undo()
        forget_choices()
