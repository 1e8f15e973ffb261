"""store_kv: every implementation against the reference."""

import pytest
import torch
from kernel_cases import Runner, random, reference
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _stored(run: Runner, k: Tensor, v: Tensor, slots: Tensor, dtype: torch.dtype) -> list[Tensor]:
    device = getattr(run, "device", "cpu")
    caches = [torch.full((5, 3, *k.shape[1:]), 7.0, dtype=dtype, device=device) for _ in "kv"]
    run("store_kv", k, v, *caches, slots)
    return [cache.cpu() for cache in caches]


@pytest.mark.parametrize("slots", [[0], [14, 2, 7], [-1, 4, -1], [-1], []], ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_store_kv_writes_the_named_slots_only(
    runner: Runner, slots: list[int], index_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    """Each row lands in its slot, -1 is skipped, and every other slot keeps its value."""
    k, v = random(len(slots), 3, 10), random(len(slots), 3, 10, seed=1)
    mapping = torch.tensor(slots, dtype=index_dtype)
    stored = _stored(runner, k, v, mapping, dtype)
    for cache, rows in zip(stored, (k, v), strict=True):
        expected = torch.full((15, 3, 10), 7.0, dtype=dtype)
        for slot, row in zip(slots, rows, strict=True):
            if slot >= 0:
                expected[slot] = row.to(dtype)
        assert torch.equal(cache.flatten(0, 1), expected)


@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_store_kv_converts_to_the_dtype_of_the_cache(
    runner: Runner, dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    """Values are rounded to the cache's dtype exactly as torch rounds."""
    k, v = random(4, 2, 8, dtype=dtype), random(4, 2, 8, dtype=dtype, seed=1)
    slots = torch.tensor([3, 0, 11, 6])
    expected = _stored(reference, k, v, slots, cache_dtype)
    for actual, wanted in zip(_stored(runner, k, v, slots, cache_dtype), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_store_kv_takes_strided_rows(runner: Runner) -> None:
    """Keys and values may be slices of a fused QKV projection."""
    fused = random(3, 6, 8)
    k, v = fused[:, 2:4], fused[:, 4:]
    slots = torch.tensor([1, 9, 5])
    expected = _stored(reference, k, v, slots, torch.float32)
    for actual, wanted in zip(_stored(runner, k, v, slots, torch.float32), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("code_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (3, 10), (2, 64)])
def test_store_kv_encodes_for_an_8_bit_cache(
    runner: Runner, heads: int, head_dim: int, dtype: torch.dtype, code_dtype: torch.dtype
) -> None:
    """Codes and scales are the reference's bit for bit: rounded, not cut off."""
    k, v = (random(6, heads, head_dim, dtype=dtype, seed=seed) * 3 for seed in (0, 1))
    k[2] = 0
    slots = torch.tensor([3, 0, 11, -1, 6, 14])
    expected = _encoded(reference, k, v, slots, code_dtype)
    for actual, wanted in zip(_encoded(runner, k, v, slots, code_dtype), expected, strict=True):
        assert torch.equal(actual, wanted)


def _encoded(
    run: Runner, k: Tensor, v: Tensor, slots: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    device = getattr(run, "device", "cpu")
    shape = (5, 3, *k.shape[1:])
    caches = [torch.ones(shape, device=device).to(dtype) for _ in "kv"]
    scales = [torch.full(shape[:3], 7.0, device=device) for _ in "kv"]
    run("store_kv", k, v, *caches, slots, k_scale=scales[0], v_scale=scales[1])
    return tuple(tensor.float().cpu() for tensor in (*caches, *scales))


@pytest.mark.parametrize("code_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_store_kv_rounds_codes_half_to_even(runner: Runner, code_dtype: torch.dtype) -> None:
    """Every code and every midpoint between two lands where torch rounds it."""
    if code_dtype == torch.int8:
        row = torch.arange(-254, 255) / 2
    else:
        codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        row = torch.cat((codes, (codes[1:] + codes[:-1]) / 2, -codes))
    rows = row.view(1, 1, -1)
    codes, _, scale, _ = _encoded(runner, rows, rows, torch.tensor([0]), code_dtype)
    assert scale[0, 0, 0] == 1.0
    rounded = row.round() if code_dtype == torch.int8 else row
    assert torch.equal(codes[0, 0, 0], rounded.to(code_dtype).float())
