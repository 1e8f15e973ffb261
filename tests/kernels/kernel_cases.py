"""What the op tests share: calling one implementation, and building paged batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch


@dataclass(frozen=True)
class Runner:
    """One implementation on one device type."""

    implementation: dispatch.Implementation
    device: str

    def __str__(self) -> str:
        return f"{self.implementation}-{self.device}"

    def __call__(self, op: str, *args: Any, **options: Any) -> Any:
        """Run the op on copies of the tensors on this device."""
        args = tuple(self._moved(arg) for arg in args)
        options = {name: self._moved(value) for name, value in options.items()}
        return dispatch.load(op, self.implementation)(*args, **options)

    def _moved(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


def reference(op: str, *args: Any, **options: Any) -> Any:
    """The expected result."""
    return dispatch.load(op, "reference")(*args, **options)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal values, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def encode(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of [..., D] and their scales [...], as the quantising ops make them."""
    scales = values.float().abs().amax(dim=-1) / (127 if dtype == torch.int8 else 448)
    codes = values.float() / scales.unsqueeze(-1)
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scales


@dataclass(frozen=True)
class PagedBatch:
    """Arguments of `paged_attention`; every cache slot that no sequence uses holds NaN."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    query_start_lens: Tensor
    context_lens: Tensor
    scale: float
    max_query_len: int
    max_context_len: int
    window: int | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None
    tree_mask: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    def but(self, **changes: Any) -> "PagedBatch":
        """The same batch with some arguments changed."""
        return PagedBatch(**{**vars(self), **changes})

    def run(self, runner: Any) -> Tensor:
        arguments = dict(vars(self))
        tensors = [arguments.pop(name) for name in list(arguments)[:6]]
        result: Tensor = runner("paged_attention", *tensors, **arguments)
        return result


def paged_batch(
    sequences: list[tuple[int, int]],
    *,
    query_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    block_size: int = 4,
    extra_blocks: int = 2,
    q_dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> PagedBatch:
    """Build a batch of (queries, context_len) sequences over shuffled, NaN-poisoned blocks."""
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-context_len // block_size) for _, context_len in sequences]
    num_blocks = sum(needed) + extra_blocks
    free = torch.randperm(num_blocks, generator=generator).tolist()
    table_len = max(needed, default=0) + 1
    block_tables = torch.full((len(sequences), table_len), -1, dtype=torch.int32)
    cache_shape = (num_blocks, block_size, kv_heads, head_dim)
    k_cache, v_cache = torch.full(cache_shape, torch.nan), torch.full(cache_shape, torch.nan)
    for row, (_, context_len) in enumerate(sequences):
        blocks = torch.tensor([free.pop() for _ in range(needed[row])], dtype=torch.long)
        block_tables[row, : needed[row]] = blocks
        position = torch.arange(context_len)
        place = blocks[position // block_size], position % block_size
        for cache in (k_cache, v_cache):
            cache[place] = torch.randn(context_len, kv_heads, head_dim, generator=generator)
    counts = [queries for queries, _ in sequences]
    q = torch.randn(sum(counts), query_heads, head_dim, generator=generator)
    cache_dtype = cache_dtype or q_dtype
    return PagedBatch(
        q=q.to(q_dtype),
        k_cache=k_cache.to(cache_dtype),
        v_cache=v_cache.to(cache_dtype),
        block_tables=block_tables,
        query_start_lens=torch.tensor([0, *counts]).cumsum(0).int(),
        context_lens=torch.tensor([length for _, length in sequences], dtype=torch.int32),
        scale=head_dim**-0.5,
        max_query_len=max(counts, default=0),
        max_context_len=max((length for _, length in sequences), default=0),
    )
