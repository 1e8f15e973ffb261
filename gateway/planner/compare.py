"""The field's common set-ups beside the prices that are quoted for them, and published speeds."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from gateway.planner.errors import PlanError
from gateway.planner.hardware import Hardware
from gateway.planner.setups import Technique, place
from gateway.planner.shapes import shape_of
from gateway.planner.workload import Workload, fixed


class Quoted(Struct, frozen=True, kw_only=True):
    """A set-up that people quote a price for."""

    model: str
    precision: str
    hardware: str
    devices: int
    usd_per_million_tokens: float | None
    """As quoted, without saying at which load; None: the same machine for comparison."""


QUOTED = (
    Quoted(model="70B", precision="bf16", hardware="h100", devices=4, usd_per_million_tokens=0.50),
    Quoted(model="70B", precision="int8", hardware="h100", devices=2, usd_per_million_tokens=0.25),
    Quoted(
        model="70B", precision="int4", hardware="a100-80g", devices=1, usd_per_million_tokens=None
    ),
    Quoted(model="8B", precision="int4", hardware="a10g", devices=1, usd_per_million_tokens=0.05),
    Quoted(model="8B", precision="bf16", hardware="h200", devices=1, usd_per_million_tokens=None),
)
_TYPICAL = fixed(1.0, 1000, 250)
"""Four prompt tokens to an output token, as in recorded conversations."""


class Published(Struct, frozen=True, kw_only=True):
    """A speed that an engine's makers measured."""

    engine: str
    model: str
    precision: str
    hardware: str
    devices: int
    batch: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    """Of all devices."""
    kv_bytes: float
    source: str


_TRT = "NVIDIA/TensorRT-LLM docs/source/performance.md, v0.6.1"
_VLLM = "vllm-project/vllm pull request 18566, ShareGPT; the GPU is not named: taken for an H100"
PUBLISHED = tuple(
    Published(
        engine="vLLM" if source == _VLLM else "TensorRT-LLM",
        model=model,
        precision=precision,
        hardware=hardware,
        devices=devices,
        batch=batch,
        prompt_tokens=prompt,
        output_tokens=output,
        output_tokens_per_s=rate,
        kv_bytes=1.0 if precision == "fp8" else 2.0,
        source=source,
    )
    for model, precision, hardware, devices, batch, prompt, output, rate, source in (
        ("70B", "fp8", "h100", 2, 1024, 128, 128, 2 * 2657.0, _TRT),
        ("70B", "fp8", "h100", 4, 480, 128, 2048, 4 * 1486.0, _TRT),
        ("70B", "fp8", "h100", 2, 96, 2048, 128, 2 * 306.0, _TRT),
        ("70B", "fp8", "h100", 2, 64, 2048, 2048, 2 * 547.0, _TRT),
        ("8B", "bf16", "h100", 1, 256, 230, 203, 6582.87, _VLLM),
    )
)
"""70B there is Llama 2's, of the same shape but for its vocabulary."""


def compare(
    catalogue: Mapping[str, Hardware], workload: Workload = _TYPICAL
) -> list[dict[str, Any]]:
    """Each set-up's price at a full batch, at batch 1, and the load at which the quoted one holds.

    A price per token is a price per hour over tokens per hour, so it holds at one load only.
    """
    return [_row(setup, catalogue, workload) for setup in QUOTED]


def _row(quoted: Quoted, catalogue: Mapping[str, Hardware], workload: Workload) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": quoted.model,
        "precision": quoted.precision,
        "hardware": f"{quoted.devices} × {quoted.hardware}",
        "published_usd_per_million_tokens": quoted.usd_per_million_tokens,
    }
    hardware = catalogue.get(quoted.hardware)
    if hardware is None:
        return {**row, "problem": f"{quoted.hardware} is not in the catalogue"}
    shape = shape_of(quoted.model)
    try:
        setup = place(shape, hardware, quoted.precision, quoted.devices, workload)
    except PlanError as error:
        return {**row, "problem": str(error)}
    tokens = workload.mean_prompt_tokens + workload.mean_output_tokens

    def price(batch: int) -> float:
        per_s, _ = setup.steady_state(workload, batch)
        return setup.usd_per_hour / (per_s * tokens * 3600) * 1e6

    full, tpot_s = setup.max_batch, setup.steady_state(workload, setup.max_batch)[1]
    row |= {
        "usd_per_hour": setup.usd_per_hour,
        "prices_as_of": hardware.as_of,
        "full_batch": full,
        "usd_per_million_tokens_full": round(price(full), 4),
        "usd_per_million_tokens_batch_1": round(price(1), 4),
        "tpot_full_ms": round(tpot_s * 1e3, 1),
        "requests_per_s_full": round(setup.steady_state(workload, full)[0], 3),
    }
    asked = quoted.usd_per_million_tokens
    if asked is not None:
        meets = [b for b in range(1, full + 1) if price(b) <= asked]
        row["published_holds_from_batch"] = meets[0] if meets else None
        row["holds_if"] = (
            f"at least {meets[0]} requests are under way at every moment of the month "
            f"({setup.steady_state(workload, meets[0])[0]:.2g}/s)"
            if meets
            else f"an hour costs ${setup.usd_per_hour * asked / price(full):.2f} or less, full"
        )
    return row


def published(catalogue: Mapping[str, Hardware]) -> list[dict[str, Any]]:
    """Measured speeds of others' engines beside ours on paper, at their batch and lengths."""
    rows = []
    for one in PUBLISHED:
        row: dict[str, Any] = {
            "engine": one.engine,
            "model": one.model,
            "precision": one.precision,
            "hardware": f"{one.devices} × {one.hardware}",
            "batch": one.batch,
            "prompt_tokens": one.prompt_tokens,
            "output_tokens": one.output_tokens,
            "published_output_tokens_per_s": one.output_tokens_per_s,
            "source": one.source,
        }
        hardware = catalogue.get(one.hardware)
        if hardware is None:
            rows.append({**row, "problem": f"{one.hardware} is not in the catalogue"})
            continue
        work = fixed(1.0, one.prompt_tokens, one.output_tokens)
        how = Technique(kv_bytes=one.kv_bytes, max_batch=1024)
        try:
            setup = place(
                shape_of(one.model), hardware, one.precision, one.devices, work, technique=how
            )
        except PlanError as error:
            rows.append({**row, "problem": str(error)})
            continue
        batch = min(one.batch, setup.max_batch)
        made = setup.steady_state(work, batch)[0] * one.output_tokens
        row["planned_batch"] = batch
        row["planned_output_tokens_per_s"] = round(made, 1)
        row["planned_over_published"] = round(made / one.output_tokens_per_s, 3)
        rows.append(row)
    return rows
