"""rope_store: in every implementation `rope` and then `store_kv`, bit for bit."""

import pytest
import torch
from kernel_cases import Runner, random
from torch import Tensor

from kernels.errors import KernelError
from kernels.rope_store import rope_store

DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float16, torch.int8),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float8_e4m3fn),
]
"""Of queries, keys and values, and of the cache."""
SLOTS = [5, 0, -1, 14, 7]


def _inputs(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Slices of a fused projection, angles and positions."""
    fused = random(5, heads + 2 * kv_heads, dim, dtype=dtype)
    q, k, v = torch.split(fused, [heads, kv_heads, kv_heads], dim=1)
    return q, k, v, random(40, dim, seed=1), torch.tensor([0, 39, 3, 17, 8])


def _memory(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> tuple[list[Tensor], dict[str, Tensor]]:
    caches = [torch.full(shape, 3.0, device=device).to(dtype) for _ in "kv"]
    if dtype.itemsize > 1:
        return caches, {}
    return caches, {f"{x}_scale": torch.full(shape[:3], 7.0, device=device) for x in "kv"}


@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 3, 10), (6, 1, 64)])
def test_rope_store_equals_the_two_ops(
    runner: Runner,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
) -> None:
    """Queries, cache and scales; skipped slots and odd sizes too."""
    q, k, v, angles, positions = _inputs(heads, kv_heads, dim, dtype)
    shape, slots = (5, 3, kv_heads, dim), torch.tensor(SLOTS)
    ours, our_scales = _memory(shape, cache_dtype, runner.device)
    theirs, their_scales = _memory(shape, cache_dtype, runner.device)
    rotated = runner("rope_store", q, k, v, angles, positions, *ours, slots, **our_scales)
    expected, keys = runner("rope", q, k, angles, positions)
    runner("store_kv", keys, v, *theirs, slots, **their_scales)
    assert torch.equal(rotated, expected)
    for one, other in zip(
        (*ours, *our_scales.values()), (*theirs, *their_scales.values()), strict=True
    ):
        assert torch.equal(one.float(), other.float())


def test_rope_store_of_no_tokens(runner: Runner) -> None:
    """An empty batch writes nothing."""
    q, k, v, _, positions = (t[:0] for t in _inputs(4, 2, 16, torch.float32))
    caches, _ = _memory((2, 3, 2, 16), torch.float32, runner.device)
    slots = torch.empty(0, dtype=torch.int64)
    out = runner("rope_store", q, k, v, random(40, 16), positions, *caches, slots)
    assert out.shape == (0, 4, 16)
    assert (caches[0] == 3.0).all()


def test_rope_store_refuses_what_does_not_fit() -> None:
    """Sizes and dtypes are checked before any implementation runs."""
    q, k, v, angles, positions = _inputs(4, 2, 16, torch.float32)
    caches, _ = _memory((5, 3, 2, 16), torch.float32, "cpu")
    slots = torch.tensor(SLOTS)
    good = [q, k, v, angles, positions, *caches, slots]
    for place, bad, says in (
        (1, k[:, :, :8], "q, k and v are"),
        (2, v.half(), "v is torch.float16"),
        (3, angles[:, :8], "cos_sin_cache is"),
        (4, positions[:3], r"positions is \[3\]"),
        (5, caches[0][:, :, :1], "k_cache is"),
        (6, caches[1].half(), "v_cache is torch.float16"),
        (7, slots.float(), "slot_mapping is torch.float32"),
    ):
        with pytest.raises(KernelError, match=says):
            rope_store(*good[:place], bad, *good[place + 1 :])
