"""The field's common set-ups beside the prices that are quoted for them; what techniques save."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from gateway.planner.capacity import Plan, Technique, place
from gateway.planner.errors import PlanError
from gateway.planner.hardware import Hardware
from gateway.planner.shapes import ModelShape, shape_of
from gateway.planner.workload import Slo, Workload, fixed


class Published(Struct, frozen=True, kw_only=True):
    """A set-up that people quote a price for."""

    model: str
    precision: str
    hardware: str
    devices: int
    usd_per_million_tokens: float | None
    """As quoted, without saying at which load; None: the same machine for comparison."""


SETUPS = (
    Published(
        model="70B", precision="bf16", hardware="h100", devices=4, usd_per_million_tokens=0.50
    ),
    Published(
        model="70B", precision="int8", hardware="h100", devices=2, usd_per_million_tokens=0.25
    ),
    Published(
        model="70B", precision="int4", hardware="a100-80g", devices=1, usd_per_million_tokens=None
    ),
    Published(
        model="8B", precision="int4", hardware="a10g", devices=1, usd_per_million_tokens=0.05
    ),
    Published(
        model="8B", precision="bf16", hardware="h200", devices=1, usd_per_million_tokens=None
    ),
)
_TYPICAL = fixed(1.0, 1000, 250)
"""Four prompt tokens to an output token, as in recorded conversations."""


def compare(
    catalogue: Mapping[str, Hardware], workload: Workload = _TYPICAL
) -> list[dict[str, Any]]:
    """Each set-up's price at a full batch, at batch 1, and the load at which the quoted one holds.

    A price per token is a price per hour over tokens per hour, so it holds at one load only.
    """
    return [_row(setup, catalogue, workload) for setup in SETUPS]


def _row(
    published: Published, catalogue: Mapping[str, Hardware], workload: Workload
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": published.model,
        "precision": published.precision,
        "hardware": f"{published.devices} × {published.hardware}",
        "published_usd_per_million_tokens": published.usd_per_million_tokens,
    }
    hardware = catalogue.get(published.hardware)
    if hardware is None:
        return {**row, "problem": f"{published.hardware} is not in the catalogue"}
    shape = shape_of(published.model)
    try:
        setup = place(shape, hardware, published.precision, published.devices, workload)
    except PlanError as error:
        return {**row, "problem": str(error)}
    tokens = workload.mean_prompt_tokens + workload.mean_output_tokens

    def price(batch: int) -> float:
        per_s, _ = setup.steady_state(workload, batch)
        return setup.usd_per_hour / (per_s * tokens * 3600) * 1e6

    full, tpot_s = setup.max_batch, setup.steady_state(workload, setup.max_batch)[1]
    row |= {
        "usd_per_hour": setup.usd_per_hour,
        "full_batch": full,
        "usd_per_million_tokens_full": round(price(full), 4),
        "usd_per_million_tokens_batch_1": round(price(1), 4),
        "tpot_full_ms": round(tpot_s * 1e3, 1),
    }
    if published.usd_per_million_tokens is not None:
        meets = [b for b in range(1, full + 1) if price(b) <= published.usd_per_million_tokens]
        row["published_holds_from_batch"] = meets[0] if meets else None
    return row


TECHNIQUES: dict[str, Technique] = {
    "8-bit KV cache": Technique(kv_bytes=1.0),
    "speculation (2.2 tokens a step, 1.25x its time)": Technique(
        tokens_per_step=2.2, step_factor=1.25
    ),
    "no batching": Technique(max_batch=1),
}


def savings(shape: ModelShape, chosen: Plan, slo: Slo) -> list[dict[str, Any]]:
    """What each technique changes for the chosen machine: $ per million tokens, in steady state.

    Every line stands alone, against the chosen set-up; what is assumed of it is in its name.
    """
    base, workload = chosen.setup, chosen.workload
    lines = [("as planned", base.precision, Technique(), workload)]
    lines += [(f"weights in {p}", p, Technique(), workload) for p in ("bf16", "int8", "int4")]
    lines += [(name, base.precision, how, workload) for name, how in TECHNIQUES.items()]
    cached = Workload(
        requests_per_s=workload.requests_per_s,
        lengths=workload.lengths,
        prefix_share=max(workload.prefix_share, 0.5),
        source=workload.source,
    )
    lines.append(("half of the prompts from the prefix cache", base.precision, Technique(), cached))
    found: list[dict[str, Any]] = []
    for name, precision, technique, work in lines:
        if name != "as planned" and precision == base.precision and name.startswith("weights"):
            continue
        try:
            setup = place(shape, base.hardware, precision, base.devices, work, technique)
        except PlanError as error:
            found.append({"technique": name, "problem": str(error)})
            continue
        batch = setup.best_batch(work, slo)
        if batch == 0:
            found.append({"technique": name, "problem": "misses the promised token time"})
            continue
        per_s, tpot_s = setup.steady_state(work, batch)
        tokens = work.mean_prompt_tokens + work.mean_output_tokens
        found.append(
            {
                "technique": name,
                "usd_per_million_tokens": round(
                    setup.usd_per_hour / (per_s * tokens * 3600) * 1e6, 5
                ),
                "batch": batch,
                "tpot_ms": round(tpot_s * 1e3, 2),
            }
        )
    return found
