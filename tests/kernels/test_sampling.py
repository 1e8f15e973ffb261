"""sample and penalise: every implementation against the reference, and the reference's law."""

from typing import Any

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close
from torch import Tensor

from kernels.errors import KernelError
from kernels.sampling import penalise, sample
from kernels.sampling.reference import philox

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _arguments(logits: Tensor, **changes: Any) -> tuple[Tensor, ...]:
    """One row of parameters for every row of logits; a number stands for all rows."""
    rows = logits.shape[0]
    wanted = {"temperature": 1.0, "top_k": 1 << 30, "top_p": 1.0, "min_p": 0.0, **changes}
    wanted = {"seeds": torch.arange(rows) * 977 - 5, "places": torch.arange(rows), **wanted}
    dtypes = {"top_k": torch.int32, "seeds": torch.int64, "places": torch.int64}
    order = ("temperature", "top_k", "top_p", "min_p", "seeds", "places")
    columns = []
    for name in order:
        value = torch.as_tensor(wanted[name]).to(dtypes.get(name, torch.float32))
        columns.append(value.expand(rows).contiguous())
    return (logits, *columns)


TRUNCATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.3},
    "top_k_1": {"top_k": 1},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "top_p_0": {"top_p": 0.0},
    "min_p": {"min_p": 0.2},
    "all": {"temperature": 0.8, "top_k": 9, "top_p": 0.7, "min_p": 0.02},
    "hot": {"temperature": 50.0, "top_k": 40, "top_p": 0.9},
}


@pytest.mark.parametrize("vocabulary", [1, 7, 5003])
@pytest.mark.parametrize("truncation", TRUNCATIONS.values(), ids=TRUNCATIONS)
def test_sample_equals_the_reference(
    runner: Runner, vocabulary: int, truncation: dict[str, Any]
) -> None:
    """Every truncation of small and odd vocabularies draws the reference's tokens."""
    arguments = _arguments(random(3, vocabulary) * 3, **truncation)
    assert torch.equal(runner("sample", *arguments).cpu(), reference("sample", *arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sample_takes_any_mixture_of_rows(runner: Runner, dtype: torch.dtype) -> None:
    """Greedy rows, plain ones and truncated ones stand in one batch."""
    logits = (random(7, 321) * 3).to(dtype)
    logits[2, 5:] = -torch.inf
    arguments = _arguments(
        logits,
        temperature=torch.tensor([0.0, 1.0, 1.0, 0.7, 1.3, 0.0, 2.0]),
        top_k=torch.tensor([5, 400, 400, 3, 321, 1, 40]),
        top_p=torch.tensor([1.0, 1.0, 0.9, 0.9, 0.2, 0.1, 1.0]),
        min_p=torch.tensor([0.0, 0.1, 0.0, 0.3, 0.0, 0.0, 0.001]),
    )
    assert torch.equal(runner("sample", *arguments).cpu(), reference("sample", *arguments))


def test_sample_of_a_row_ignores_its_batch(runner: Runner) -> None:
    """Seed, place and logits decide, not what is drawn beside them or in which row."""
    arguments = _arguments(random(3, 100), top_p=0.9)
    together = runner("sample", *arguments)
    for row in range(3):
        alone = runner("sample", *(column[row : row + 1] for column in arguments))
        assert alone[0] == together[row]


def test_sample_takes_no_rows(runner: Runner) -> None:
    """An empty batch gives no tokens."""
    assert runner("sample", *_arguments(random(0, 9))).shape == (0,)


def test_sample_keeps_equals_of_the_last_token_kept(runner: Runner) -> None:
    """Which of several equals stay must not depend on their order: all do."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, -9.0]]).repeat(16, 1)
    drawn = runner("sample", *_arguments(logits, top_k=2)).cpu()
    assert set(drawn.tolist()) == {0, 1, 2, 3}


def test_sample_takes_the_first_of_equally_likely_tokens(runner: Runner) -> None:
    """Greedy ties go to the lower token id."""
    logits = torch.zeros(1, 3000)
    logits[0, [17, 1500, 2999]] = 4.0
    assert runner("sample", *_arguments(logits, temperature=0.0)).tolist() == [17]


def test_sample_draws_from_the_softmax() -> None:
    """Over many seeds each token comes as often as its probability says (chi-square)."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -0.5])
    draws = 20_000
    arguments = _arguments(logits.repeat(draws, 1), seeds=torch.arange(draws), places=3)
    counts = reference("sample", *arguments).bincount(minlength=5)
    expected = logits.softmax(0) * draws
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 1 in 1000 by chance


def test_sample_draws_anew_at_every_place() -> None:
    """One seed's places are as independent as seeds are."""
    logits = torch.zeros(20_000, 4)
    drawn = reference("sample", *_arguments(logits, seeds=7, places=torch.arange(20_000)))
    counts = drawn.bincount(minlength=4)
    assert ((counts - 5000) ** 2 / 5000).sum() < 16.3
    assert abs((drawn[1:] == drawn[:-1]).float().mean() - 0.25) < 0.02


def test_philox_gives_the_published_words() -> None:
    """The known answers of the Random123 distribution for Philox4x32-10."""
    zeros, ones = torch.tensor(0), torch.tensor(0xFFFFFFFF)
    words = [int(word) for word in philox(zeros, [zeros] * 4)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = [int(word) for word in philox(torch.tensor(-1), [ones] * 4)]
    assert words == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("vocabulary", [1, 33, 2050])
def test_penalise_equals_the_reference(runner: Runner, vocabulary: int) -> None:
    """All three penalties, on rows of any sequence, and on none where there is no holder."""
    logits = random(4, vocabulary).to(runner.device)
    expected = logits.cpu().clone()
    counts = (random(3, vocabulary, seed=1) * 2).int().clamp(min=0)
    in_prompt = random(3, vocabulary, seed=2) > 0.8
    strengths = torch.tensor([[1.3, 0.2, 0.5], [1.0, 0.0, 0.0], [0.8, -0.4, 0.0], [2.0, 1.0, 1.0]])
    holders = torch.tensor([2, 0, 1, -1])
    runner("penalise", logits, in_prompt, counts, holders, strengths)
    untouched = expected[[1, 3]].clone()
    reference("penalise", expected, in_prompt, counts, holders, strengths)
    assert_close(logits, expected)
    assert torch.equal(logits.cpu()[[1, 3]], untouched)


def test_sampling_refuses_what_does_not_fit() -> None:
    """Sizes and dtypes are checked before any kernel."""
    good = _arguments(random(2, 9))
    with pytest.raises(KernelError, match=r"top_p is \[1\]; need \[2\]"):
        sample(*good[:3], good[3][:1], *good[4:])
    with pytest.raises(KernelError, match=r"top_k is torch\.int64"):
        sample(*good[:2], good[2].long(), *good[3:])
    with pytest.raises(KernelError, match="V at least 1"):
        sample(random(2, 0), *good[1:])
    with pytest.raises(KernelError, match=r"holders is \[1\]"):
        penalise(
            random(2, 9),
            torch.zeros(1, 9, dtype=torch.bool),
            torch.zeros(1, 9, dtype=torch.int32),
            torch.zeros(1, dtype=torch.int64),
            torch.ones(2, 3),
        )
