"""route_experts and expert_mlp: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close
from torch import Tensor

from kernels import native
from kernels.errors import KernelError
from kernels.moe import expert_mlp, route_experts

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize(("count", "top_k"), [(1, 1), (8, 2), (13, 13), (60, 4)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_route_experts_equals_the_reference(
    runner: Runner, tokens: int, count: int, top_k: int, renormalise: bool
) -> None:
    """Any number of experts, all of them too, gives the reference's choice and weights."""
    logits = random(tokens, count)
    options = {"top_k": top_k, "renormalise": renormalise}
    weights, experts = runner("route_experts", logits, **options)
    wanted_weights, wanted_experts = reference("route_experts", logits, **options)
    assert torch.equal(experts.cpu(), wanted_experts)
    assert_close(weights, wanted_weights)


def test_route_experts_takes_the_first_of_equals(runner: Runner) -> None:
    """Equally likely experts are taken in their order, so that a choice is never by chance."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    _, experts = runner("route_experts", logits, top_k=4, renormalise=True)
    assert experts.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


def _experts(tokens: int, count: int, top_k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return reference("route_experts", random(tokens, count, seed=seed), top_k=top_k,
                     renormalise=True)  # fmt: skip


@pytest.mark.parametrize("tokens", [0, 1, 3, 21])
@pytest.mark.parametrize(
    ("count", "top_k", "hidden", "features"), [(1, 1, 8, 6), (5, 2, 20, 14), (9, 3, 64, 33)]
)
def test_expert_mlp_equals_the_reference(
    runner: Runner, tokens: int, count: int, top_k: int, hidden: int, features: int
) -> None:
    """Experts with many tokens, with one and with none give the reference's numbers."""
    gate_up = random(count, 2 * features, hidden, seed=1) / hidden**0.5
    down = random(count, hidden, features, seed=2) / features**0.5
    arguments = (random(tokens, hidden), gate_up, down, *_experts(tokens, count, top_k))
    assert_close(runner("expert_mlp", *arguments), reference("expert_mlp", *arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expert_mlp_keeps_the_dtype(runner: Runner, dtype: torch.dtype) -> None:
    """Half precision in, half precision out, summed in fp32 between."""
    gate_up = (random(4, 24, 16, seed=1) / 4).to(dtype)
    down = (random(4, 16, 12, seed=2) / 4).to(dtype)
    arguments = (random(6, 16, dtype=dtype), gate_up, down, *_experts(6, 4, 2))
    assert_close(runner("expert_mlp", *arguments), reference("expert_mlp", *arguments))


def test_expert_mlp_serves_a_batch_that_wants_one_expert(runner: Runner) -> None:
    """The worst routing fills several tiles of one expert and none of the others."""
    gate_up, down = random(3, 8, 8, seed=1) / 3, random(3, 8, 4, seed=2) / 2
    experts = torch.full((40, 1), 1, dtype=torch.int32)
    arguments = (random(40, 8), gate_up, down, torch.ones(40, 1), experts)
    assert_close(runner("expert_mlp", *arguments), reference("expert_mlp", *arguments))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
def test_native_experts_answer_a_token_alike_in_any_batch() -> None:
    """Bit for bit, a token's experts say the same alone, beside others and on several threads."""
    runner = Runner("native", "cpu")
    gate_up, down = random(5, 132, 70, seed=1) / 8, random(5, 70, 66, seed=2) / 8
    x, (weights, experts) = random(64, 70), _experts(64, 5, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = runner("expert_mlp", x, gate_up, down, weights, experts)
        torch.set_num_threads(1)
        for token in (0, 31, 63):
            own = slice(token, token + 1)
            alone = runner("expert_mlp", x[own], gate_up, down, weights[own], experts[own])
            assert torch.equal(together[own], alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
@pytest.mark.parametrize("expert", [-1, 4])
def test_native_experts_refuse_an_expert_that_there_is_not(expert: int) -> None:
    """A choice outside the weights is an error, never a read beyond them."""
    experts = torch.full((1, 1), expert, dtype=torch.int32)
    arguments = (random(1, 8), random(4, 12, 8), random(4, 8, 6), torch.ones(1, 1), experts)
    with pytest.raises(KernelError, match="points outside"):
        Runner("native", "cpu")("expert_mlp", *arguments)


def test_moe_refuses_what_does_not_fit() -> None:
    """Sizes and dtypes are checked before any kernel."""
    x, gate_up, down = random(3, 8), random(4, 12, 8), random(4, 8, 6)
    weights, experts = _experts(3, 4, 2)
    for call, says in (
        (lambda: route_experts(random(3, 4), top_k=5, renormalise=True), "need 1 to 4"),
        (lambda: expert_mlp(x, gate_up[:, :10], down, weights, experts), "gate_up is"),
        (lambda: expert_mlp(x, gate_up, down, weights, experts.long()), "experts is torch"),
        (lambda: expert_mlp(x, gate_up, down, weights[:2], experts), "weights is"),
        (lambda: expert_mlp(x.half(), gate_up, down, weights, experts), "gate_up is torch"),
    ):
        with pytest.raises(KernelError, match=says):
            call()
