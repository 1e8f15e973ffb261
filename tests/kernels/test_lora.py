"""lora_add: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close
from torch import Tensor

from kernels.errors import KernelError
from kernels.lora import lora_add

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _adapters(
    count: int, rank: int, inputs: int, channels: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    a = (random(count, rank, inputs, seed=1) / inputs**0.5).to(dtype)
    b = (random(count, channels, rank, seed=2) / rank**0.5).to(dtype)
    return a, b, random(count, seed=3).abs() + 0.5


def _run(
    runner: Runner, out: Tensor, x: Tensor, weights: tuple[Tensor, ...], lens: list[int],
    adapters: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    starts = torch.tensor([0, *lens]).cumsum(0).int()
    rest = (x, *weights, starts, torch.tensor(adapters, dtype=torch.int32))
    mine, wanted = out.clone().to(runner.device), out.clone()
    runner("lora_add", mine, *rest)
    reference("lora_add", wanted, *rest)
    return mine, wanted


@pytest.mark.parametrize(
    ("lens", "adapters"),
    [
        ([1], [0]),
        ([1, 1, 1], [2, -1, 0]),
        ([17, 0, 1, 5, 33], [1, 1, 0, -1, 2]),
        ([1, 16, 1], [-1, -1, -1]),
        ([], []),
    ],
    ids=["one", "decode", "mixed", "none", "empty"],
)
@pytest.mark.parametrize(("rank", "inputs", "channels"), [(1, 5, 3), (8, 70, 33), (20, 130, 40)])
def test_lora_add_equals_the_reference(
    runner: Runner, lens: list[int], adapters: list[int], rank: int, inputs: int, channels: int
) -> None:
    """Each sequence gets its own adapter's product added, and one without an adapter nothing."""
    tokens = sum(lens)
    out, x = random(tokens, channels), random(tokens, inputs, seed=9)
    mine, wanted = _run(runner, out, x, _adapters(3, rank, inputs, channels), lens, adapters)
    assert_close(mine, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lora_add_keeps_the_dtype(runner: Runner, dtype: torch.dtype) -> None:
    """The sum is rounded once, to the layer's dtype."""
    out, x = random(6, 24, dtype=dtype), random(6, 32, dtype=dtype, seed=9)
    mine, wanted = _run(runner, out, x, _adapters(2, 8, 32, 24, dtype), [1, 5], [1, 0])
    assert_close(mine, wanted)


def test_lora_add_writes_a_slice_of_a_fused_layer(runner: Runner) -> None:
    """Rows may be strided: what lies beside the slice is not touched."""
    fused = random(5, 30).to(runner.device)
    before = fused.clone()
    weights = _adapters(2, 4, 16, 10)
    starts = torch.tensor([0, 2, 5], dtype=torch.int32)
    rest = (random(5, 16), *weights, starts, torch.tensor([1, 0], dtype=torch.int32))
    wanted = before.cpu()[:, 10:20].clone()
    runner("lora_add", fused[:, 10:20], *rest)
    reference("lora_add", wanted, *rest)
    assert_close(fused[:, 10:20], wanted)
    assert torch.equal(fused[:, :10], before[:, :10])
    assert torch.equal(fused[:, 20:], before[:, 20:])


def test_lora_add_refuses_what_does_not_fit() -> None:
    """Sizes and dtypes are checked before any kernel."""
    out, x, (a, b, scales) = random(4, 6), random(4, 8), _adapters(2, 3, 8, 6)
    starts = torch.tensor([0, 4], dtype=torch.int32)
    one = torch.tensor([0], dtype=torch.int32)
    for call, says in (
        (lambda: lora_add(out, x, a[:, :, :7], b, scales, starts, one), "a is"),
        (lambda: lora_add(out, x, a, b[:1], scales, starts, one), "b is"),
        (lambda: lora_add(out, x, a, b, scales, starts[:1], one), "query_start_lens is"),
        (lambda: lora_add(out, x.half(), a, b, scales, starts, one), "x is torch"),
        (lambda: lora_add(random(6, 4).t(), x, a, b, scales, starts, one), "side by side"),
    ):
        with pytest.raises(KernelError, match=says):
            call()
