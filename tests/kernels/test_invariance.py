"""Where batch invariance is promised, a row's bits are the same in any company, op by op."""

from collections.abc import Iterator

import pytest
import torch
from kernel_cases import Runner, encode, paged_batch, random, reference
from tolerances import assert_close
from torch import Tensor

from kernels import invariance

ROWS = (1, 2, 17, 70)


@pytest.fixture(autouse=True)
def _promised() -> Iterator[None]:
    invariance.promise()
    yield
    invariance.forget()


def _assert_alike(runner: Runner, op: str, x: Tensor, *arguments: Tensor) -> None:
    """Any first rows of x give what all of them give, and about what the reference gives."""
    if runner.implementation != "triton":
        pytest.skip("on a CPU the promise is kept by C++ with packed weights")
    whole = runner(op, x, *arguments)
    assert_close(whole, reference(op, x, *arguments))
    for rows in ROWS:
        assert torch.equal(runner(op, x[-rows:], *arguments), whole[-rows:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dense_linear_answers_a_row_alike(runner: Runner, dtype: torch.dtype) -> None:
    """Plain weights, with a bias."""
    weight = random(40, 96, dtype=dtype, seed=1) / 10
    _assert_alike(runner, "dense_linear", random(70, 96, dtype=dtype), weight, random(40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_quant_linear_answers_a_row_alike(runner: Runner, dtype: torch.dtype) -> None:
    """Int8 weights: no dot product of its own for a single row, no split that rows decide."""
    codes, scale = encode(random(40, 96, seed=1), torch.int8)
    _assert_alike(runner, "quant_linear", random(70, 96, dtype=dtype), codes, scale)


def test_group_quant_linear_answers_a_row_alike(runner: Runner) -> None:
    """The same of int4."""
    codes = torch.randint(256, (40, 48), generator=torch.Generator().manual_seed(1))
    scale = random(40, 3, seed=2).abs() / 10
    _assert_alike(runner, "group_quant_linear", random(70, 96), codes.to(torch.uint8), scale)


def test_paged_attention_answers_a_query_alike(runner: Runner) -> None:
    """The last query of a prompt, as a decode step of its own, and beside others."""
    if runner.implementation != "triton":
        pytest.skip("on a CPU C++ always does so")
    batch = paged_batch([(5, 330), (1, 40)], block_size=16)
    whole = batch.run(runner)
    alone = batch.but(
        q=batch.q[4:5],
        block_tables=batch.block_tables[:1],
        query_start_lens=torch.tensor([0, 1], dtype=torch.int32),
        context_lens=batch.context_lens[:1],
        max_query_len=1,
    )
    assert torch.equal(alone.run(runner)[0], whole[4])
    assert_close(whole, batch.run(reference))


def test_a_promise_can_be_forgotten() -> None:
    """What ops choose by follows it."""
    assert invariance.rows_to_choose_by(3) == invariance.ROWS
    invariance.forget()
    assert invariance.rows_to_choose_by(3) == 3
    assert not invariance.is_promised()
