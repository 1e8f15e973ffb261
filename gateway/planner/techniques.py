"""What each technique saves on a chosen machine, and what another load would cost."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from gateway.planner.capacity import Plan
from gateway.planner.errors import PlanError
from gateway.planner.hardware import Hardware
from gateway.planner.setups import Technique, place
from gateway.planner.shapes import ModelShape
from gateway.planner.steps import Roofline
from gateway.planner.workload import Slo, Workload

SPECULATION = Technique(tokens_per_step=2.2, step_factor=1.25)


def savings(shape: ModelShape, chosen: Plan, slo: Slo) -> list[dict[str, Any]]:
    """What each technique changes for the chosen machine: $ per million tokens, in steady state.

    Every line stands alone, against the chosen set-up; what is assumed of it is in its name.
    """
    base, workload = chosen.setup, chosen.workload
    how = base.technique
    lines = [("as planned", base.precision, how, workload)]
    if isinstance(base.step, Roofline):  # measured steps are those of one precision and cache
        others = (p for p in ("bf16", "int8", "int4") if p != base.precision)
        lines += [(f"weights in {p}", p, how, workload) for p in others]
        lines.append(("8-bit KV cache", base.precision, replace(how, kv_bytes=1.0), workload))
    lines += [
        (
            f"speculation ({SPECULATION.tokens_per_step:g} tokens a step of "
            f"{SPECULATION.step_factor:g} × its time)",
            base.precision,
            replace(
                how,
                tokens_per_step=SPECULATION.tokens_per_step,
                step_factor=SPECULATION.step_factor,
            ),
            workload,
        ),
        ("no batching", base.precision, replace(how, max_batch=1), workload),
        ("no prefix cache", base.precision, how, replace(workload, prefix_share=0.0)),
        (
            "half of the prompts from the prefix cache",
            base.precision,
            how,
            replace(workload, prefix_share=max(workload.prefix_share, 0.5)),
        ),
    ]
    found: list[dict[str, Any]] = []
    for name, precision, technique, work in lines:
        if name == "no prefix cache" and not workload.prefix_share:
            continue
        step = None if isinstance(base.step, Roofline) else base.step
        try:
            setup = place(
                shape, base.hardware, precision, base.devices, work, technique, step, base.stages
            )
        except PlanError as error:
            found.append({"technique": name, "problem": str(error)})
            continue
        batch = setup.best_batch(work, slo)
        if batch == 0:
            found.append({"technique": name, "problem": "misses the promised token time"})
            continue
        per_s, tpot_s = setup.steady_state(work, batch)
        tokens = work.mean_prompt_tokens + work.mean_output_tokens
        usd = setup.usd_per_hour / (per_s * tokens * 3600) * 1e6
        found.append(
            {
                "technique": name,
                "usd_per_million_tokens": round(usd, 5),
                "saves_share": round(1 - usd / (found[0]["usd_per_million_tokens"] or usd), 4)
                if found and "usd_per_million_tokens" in found[0]
                else 0.0,
                "batch": batch,
                "tpot_ms": round(tpot_s * 1e3, 2),
            }
        )
    return found


def sensitivity(
    search: Callable[[Mapping[str, Hardware], Workload], Plan],
    catalogue: Mapping[str, Hardware],
    workload: Workload,
    *,
    measured: bool = False,
) -> list[dict[str, Any]]:
    """The cheapest answer if the load, the lengths or the machines are not what was said.

    Args:
        measured: step times are not the catalogue's, so slower devices are no question.
    """
    slower = {
        name: replace(
            one,
            bandwidth_gb_s=0.8 * one.bandwidth_gb_s,
            tflops={dtype: 0.8 * rate for dtype, rate in one.tflops.items()},
        )
        for name, one in catalogue.items()
    }
    cases: dict[str, tuple[Mapping[str, Hardware], Workload]] = {
        "load × 2": (catalogue, workload.scaled(rate=2.0)),
        "load × 0.5": (catalogue, workload.scaled(rate=0.5)),
        "answers twice as long": (catalogue, workload.scaled(output=2.0)),
        "prompts twice as long": (catalogue, workload.scaled(prompt=2.0)),
    }
    if not measured:
        cases["devices a fifth slower"] = (slower, workload)
    rows: list[dict[str, Any]] = []
    for name, (machines, load) in cases.items():
        try:
            best = search(machines, load)
        except PlanError as error:
            rows.append({"if": name, "problem": str(error)})
            continue
        rows.append(
            {
                "if": name,
                "usd_per_hour": round(best.usd_per_hour, 4),
                "machines": f"{best.replicas} × {best.setup.all_devices} "
                f"{best.setup.hardware.name} ({best.setup.precision})",
            }
        )
    return rows
