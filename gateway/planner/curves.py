"""A plan's curves: price by how full a replica's batch is, first tokens by load."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from gateway.planner.capacity import Plan, run_replica

_LOADS: Final = tuple(0.1 * n for n in range(2, 21, 2))
"""Of the planned load."""


class Curves(Struct, frozen=True, kw_only=True):
    """Of one plan."""

    name: str
    usd_by_batch: list[tuple[int, float]]
    """(sequences at once, $ per 1M tokens of a replica that is always so full)"""
    ttft_p99_by_load: list[tuple[float, float]]
    """(requests/s of all replicas, seconds), simulated"""


def curves(plans: Sequence[Plan]) -> list[Curves]:
    """Of each plan, in their order."""
    return [_of(plan) for plan in plans]


def _of(plan: Plan) -> Curves:
    setup, work = plan.setup, plan.workload
    tokens = work.mean_prompt_tokens + work.mean_output_tokens
    batches = [batch for batch in (2**n for n in range(10)) if batch <= setup.max_batch]
    rates = [setup.steady_state(work, batch)[0] for batch in batches]
    runs = [run_replica(setup, work, plan.replicas, load) for load in _LOADS]
    return Curves(
        name=f"{plan.replicas} × {setup.all_devices} {setup.hardware.name}"
        f"{setup.layout and f' {setup.layout}'}, {setup.precision}",
        usd_by_batch=[
            (batch, setup.usd_per_hour / (rate * tokens * 3600) * 1e6)
            for batch, rate in zip(batches, rates, strict=True)
        ],
        ttft_p99_by_load=[
            (load * work.requests_per_s, run.ttft_p99_s)
            for load, run in zip(_LOADS, runs, strict=True)
        ],
    )
