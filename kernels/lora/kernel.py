# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Adapters in Triton: one kernel shrinks rows to their adapter's rank, one expands and adds.

A tile holds rows of one sequence, so decode steps and prefill chunks of any adapters share a launch
(see `kernels.ragged`). Sequences without an adapter cost a program that leaves at once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ragged import find_sequence


@triton.jit
def shrink_kernel(
    x, a, low, starts, adapters, num_sequences, x_stride, inputs, rank,
    DOT_DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """low [T, R] fp32 = x aᵀ."""
    program = tl.program_id(0)
    sequence = find_sequence(starts, program, num_sequences, BLOCK_M)
    first = tl.load(starts + sequence)
    end = tl.load(starts + sequence + 1)
    m = first + (program - first // BLOCK_M - sequence) * BLOCK_M + tl.arange(0, BLOCK_M)
    adapter = tl.load(adapters + sequence).to(tl.int64)
    if (adapter < 0) | (tl.min(m, axis=0) >= end):
        return
    r, k = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    m_mask, r_mask = m < end, r < rank
    x_rows = x + m.to(tl.int64)[:, None] * x_stride
    a_columns = a + (adapter * rank + r)[None, :] * inputs
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k_mask = start + k < inputs
        left = tl.load(
            x_rows + (start + k)[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0
        )
        right = tl.load(
            a_columns + (start + k)[:, None], mask=k_mask[:, None] & r_mask[None, :], other=0.0
        )
        total = tl.dot(left.to(DOT_DTYPE), right.to(DOT_DTYPE), total, input_precision="ieee")
    tl.store(
        low + m.to(tl.int64)[:, None] * rank + r[None, :], total,
        mask=m_mask[:, None] & r_mask[None, :],
    )  # fmt: skip


@triton.jit
def expand_kernel(
    low, b, scales, out, starts, adapters, num_sequences, out_stride, channels, rank,
    DOT_DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out += scale * low bᵀ."""
    program = tl.program_id(0)
    sequence = find_sequence(starts, program, num_sequences, BLOCK_M)
    first = tl.load(starts + sequence)
    end = tl.load(starts + sequence + 1)
    m = first + (program - first // BLOCK_M - sequence) * BLOCK_M + tl.arange(0, BLOCK_M)
    adapter = tl.load(adapters + sequence).to(tl.int64)
    if (adapter < 0) | (tl.min(m, axis=0) >= end):
        return
    r = tl.arange(0, BLOCK_R)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_mask, r_mask, n_mask = m < end, r < rank, n < channels
    left = tl.load(
        low + m.to(tl.int64)[:, None] * rank + r[None, :],
        mask=m_mask[:, None] & r_mask[None, :], other=0.0,
    )  # fmt: skip
    right = tl.load(
        b + (adapter * channels + n)[None, :] * rank + r[:, None],
        mask=r_mask[:, None] & n_mask[None, :], other=0.0,
    )  # fmt: skip
    added = tl.dot(left.to(DOT_DTYPE), right.to(DOT_DTYPE), input_precision="ieee")
    target = out + m.to(tl.int64)[:, None] * out_stride + n[None, :]
    mask = m_mask[:, None] & n_mask[None, :]
    before = tl.load(target, mask=mask, other=0.0).to(tl.float32)
    after = before + added * tl.load(scales + adapter)
    tl.store(target, after.to(out.dtype.element_ty), mask=mask)


def lora_add(
    out: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    query_start_lens: Tensor,
    adapters: Tensor,
) -> None:
    (tokens, channels), (_, rank, inputs) = out.shape, a.shape
    sequences = adapters.shape[0]
    if not out.numel() or not sequences or not rank:
        return
    if x.stride(1) != 1:
        x = x.contiguous()
    low = torch.empty((tokens, rank), dtype=torch.float32, device=out.device)
    shrink, expand = shrink_options(rank, out.dtype), expand_options(rank, out.dtype)
    programs = tokens // shrink["BLOCK_M"] + sequences
    shrink_kernel[(programs,)](
        x, a, low, query_start_lens, adapters, sequences, x.stride(0), inputs, rank, **shrink
    )
    expand_kernel[(programs, triton.cdiv(channels, expand["BLOCK_N"]))](
        low, b, scales, out, query_start_lens, adapters, sequences, out.stride(0), channels, rank,
        **expand,
    )  # fmt: skip


def shrink_options(rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """Few rows and the whole rank; a long stretch of inputs at once, for there is one program."""
    block_r = max(16, triton.next_power_of_2(rank))
    exact = dtype == torch.float32
    return {
        "DOT_DTYPE": _dot_dtype(dtype), "BLOCK_M": 16, "BLOCK_R": block_r,
        "BLOCK_K": 32 if exact else 128, "num_warps": 4, "num_stages": 2 if exact else 3,
    }  # fmt: skip


def expand_options(rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """The whole rank in one dot."""
    block_r = max(16, triton.next_power_of_2(rank))
    exact = dtype == torch.float32
    return {
        "DOT_DTYPE": _dot_dtype(dtype), "BLOCK_M": 16, "BLOCK_R": block_r,
        "BLOCK_N": 32 if exact else 128, "num_warps": 4, "num_stages": 2,
    }  # fmt: skip


def _dot_dtype(dtype: torch.dtype) -> Any:
    return {torch.float32: tl.float32, torch.float16: tl.float16}.get(dtype, tl.bfloat16)
