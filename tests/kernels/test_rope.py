"""rope: every implementation against the reference, and the reference against the textbook."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _cos_sin(head_dim: int, positions: int = 50) -> Tensor:
    inverse = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(positions)[:, None] * inverse
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize(
    ("query_heads", "kv_heads", "head_dim"), [(4, 2, 16), (3, 1, 6), (1, 1, 64)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_equals_the_reference(
    runner: Runner, tokens: int, query_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Any head count and even head size gives the reference's numbers."""
    q = random(tokens, query_heads, head_dim, dtype=dtype)
    k = random(tokens, kv_heads, head_dim, dtype=dtype, seed=1)
    positions = torch.arange(tokens) * 7 + 3
    arguments = (q, k, _cos_sin(head_dim), positions)
    for actual, expected in zip(
        runner("rope", *arguments), reference("rope", *arguments), strict=True
    ):
        assert_close(actual, expected)


def test_rope_rotates_pairs_half_a_head_apart(runner: Runner) -> None:
    """Component i turns against component i + D/2, as Llama checkpoints expect."""
    q = random(3, 2, 8)
    positions = torch.tensor([0, 4, 9], dtype=torch.int32)
    rotated, _ = runner("rope", q, q[:, :1], _cos_sin(8), positions)
    angles = positions[:, None, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    expected = torch.complex(q[..., :4], q[..., 4:]) * torch.polar(torch.ones(()), angles)
    assert_close(rotated, torch.cat((expected.real, expected.imag), dim=-1))


def test_rope_takes_strided_heads_and_leaves_them_alone(runner: Runner) -> None:
    """Inputs may be slices of a fused QKV projection, and are not written."""
    fused = random(4, 6, 8).to(runner.device)
    before = fused.clone()
    arguments = (fused[:, :3], fused[:, 3:5], _cos_sin(8), torch.tensor([1, 0, 30, 2]))
    rotated = runner("rope", *arguments)
    expected = reference("rope", before.cpu()[:, :3], before.cpu()[:, 3:5], *arguments[2:])
    assert_close(rotated[0], expected[0])
    assert_close(rotated[1], expected[1])
    assert torch.equal(fused, before)
