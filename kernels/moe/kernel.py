# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Experts in Triton: tokens are sorted by expert, and a tile multiplies tokens of one expert.

Which token goes where is worked out on the device: the grid is as large as any routing could need,
and programs without tokens leave at once. A token's results are added in its experts' order.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gated_mul.kernel import silu_mul


class Plan(NamedTuple):
    """Which slots a tile of rows holds; slot t * k + i is token t's i-th expert."""

    slots: Tensor
    """[blocks * BLOCK_M] int32; T * k where a tile has a row to spare."""
    experts: Tensor
    """[blocks] int32, each tile's expert; E for a tile of no rows."""


@triton.jit
def route_kernel(
    logits, weights, experts, count, TOP_K: tl.constexpr, RENORMALISE: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    x = tl.load(logits + token * count + e, mask=e < count, other=float("-inf")).to(tl.float32)
    likelihood = tl.exp(x - tl.max(x, axis=0))
    likelihood = likelihood / tl.sum(likelihood, axis=0)
    left = tl.where(e < count, likelihood, -1.0)
    chosen = tl.zeros((BLOCK_K,), tl.int32)
    shares = tl.zeros((BLOCK_K,), tl.float32)
    for place in range(TOP_K):
        largest = tl.max(left, axis=0)
        expert = tl.min(tl.where(left == largest, e, BLOCK_E), axis=0)
        chosen = tl.where(k == place, expert, chosen)
        shares = tl.where(k == place, largest, shares)
        left = tl.where(e == expert, -1.0, left)
    if RENORMALISE:
        shares = shares / tl.sum(shares, axis=0)
    tl.store(weights + token * TOP_K + k, shares, mask=k < TOP_K)
    tl.store(experts + token * TOP_K + k, chosen, mask=k < TOP_K)


@triton.jit
def grouped_kernel(
    x, weight, slot_weights, out, slots, block_experts, x_stride, num_slots, count,
    channels, inputs, slots_per_row,
    WEIGH: tl.constexpr, DOT_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of one expert: rows slot // slots_per_row of x, results in the order of slots."""
    block = tl.program_id(0)
    expert = tl.load(block_experts + block).to(tl.int64)
    if expert >= count:
        return
    slot = tl.load(slots + block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    m_mask, n_mask = slot < num_slots, n < channels
    x_rows = x + (slot // slots_per_row)[:, None] * x_stride
    weight_columns = weight + (expert * channels + n)[None, :] * inputs
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k_mask = start + k < inputs
        left = tl.load(
            x_rows + (start + k)[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0
        )
        right = tl.load(
            weight_columns + (start + k)[:, None], mask=k_mask[:, None] & n_mask[None, :], other=0.0
        )
        total = tl.dot(left.to(DOT_DTYPE), right.to(DOT_DTYPE), total, input_precision="ieee")
    if WEIGH:
        total *= tl.load(slot_weights + slot, mask=m_mask, other=0.0)[:, None]
    tl.store(
        out + slot[:, None] * channels + n[None, :], total.to(out.dtype.element_ty),
        mask=m_mask[:, None] & n_mask[None, :],
    )  # fmt: skip


def route_experts(logits: Tensor, *, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    tokens, count = logits.shape
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device)
    experts = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
    if tokens:
        route_kernel[(tokens,)](
            logits, weights, experts, count,
            TOP_K=top_k, RENORMALISE=renormalise, **route_options(count, top_k),
        )  # fmt: skip
    return weights, experts


def expert_mlp(
    x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor
) -> Tensor:
    tokens, hidden = x.shape
    count, _, features = down.shape
    k = experts.shape[1]
    if not tokens * k or not hidden:
        return torch.zeros_like(x)
    options = grouped_options(tokens * k // count, x.dtype)
    plan = plan_tiles(experts, count, options["BLOCK_M"])
    both = x.new_empty((tokens * k, 2 * features))
    _grouped(x, gate_up, None, both, plan, k, options)
    middle = silu_mul(both)
    parts = torch.empty((tokens * k, hidden), dtype=torch.float32, device=x.device)
    _grouped(middle, down, weights.contiguous(), parts, plan, 1, options)
    return parts.view(tokens, k, hidden).sum(dim=1).to(x.dtype)


def plan_tiles(experts: Tensor, count: int, block_m: int) -> Plan:
    """Sort slots by expert and cut each expert's into tiles, on the device."""
    flat = experts.flatten().long()
    num_slots, device = flat.shape[0], flat.device
    most = min(num_slots, -(-num_slots // block_m) + count)
    held = torch.zeros(count, dtype=torch.int64, device=device)
    held.scatter_add_(0, flat, torch.ones_like(flat))
    tiles = (held + block_m - 1) // block_m
    last_tile, last_slot = tiles.cumsum(0), held.cumsum(0)
    order = flat.argsort(stable=True)
    sorted_experts = flat[order]
    rank = torch.arange(num_slots, device=device) - (last_slot - held)[sorted_experts]
    place = (last_tile - tiles)[sorted_experts] * block_m + rank
    slots = torch.full((most * block_m,), num_slots, dtype=torch.int32, device=device)
    slots.scatter_(0, place, order.int())
    tile = torch.arange(most, device=device)
    return Plan(slots, torch.searchsorted(last_tile, tile, right=True).int())


def _grouped(
    x: Tensor,
    weight: Tensor,
    slot_weights: Tensor | None,
    out: Tensor,
    plan: Plan,
    slots_per_row: int,
    options: dict[str, Any],
) -> None:
    if x.stride(1) != 1:
        x = x.contiguous()
    count, channels, inputs = weight.shape
    grid = (plan.experts.shape[0], triton.cdiv(channels, options["BLOCK_N"]))
    grouped_kernel[grid](
        x, weight, out if slot_weights is None else slot_weights, out, plan.slots, plan.experts,
        x.stride(0), out.shape[0], count, channels, inputs, slots_per_row,
        WEIGH=slot_weights is not None, **options,
    )  # fmt: skip


def route_options(count: int, top_k: int) -> dict[str, Any]:
    """One warp holds a token's experts."""
    return {
        "BLOCK_E": triton.next_power_of_2(count),
        "BLOCK_K": triton.next_power_of_2(top_k),
        "num_warps": 1,
    }


def grouped_options(slots_per_expert: int, dtype: torch.dtype) -> dict[str, Any]:
    """Tile sizes by how many rows an expert has on average."""
    if dtype == torch.float32:
        return {
            "DOT_DTYPE": tl.float32, "BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32,
            "num_warps": 4, "num_stages": 2,
        }  # fmt: skip
    block_m = 16 if slots_per_expert <= 16 else 64
    return {
        "DOT_DTYPE": tl.float16 if dtype == torch.float16 else tl.bfloat16,
        "BLOCK_M": block_m, "BLOCK_N": 64 if block_m == 16 else 128, "BLOCK_K": 64,
        "num_warps": 4, "num_stages": 3,
    }  # fmt: skip
