"""From a model, a load and a promise to the machines that keep it, cheapest first.

Every set-up (device, precision, tensor and pipeline parallelism) is first judged by its steady
state: at batch size B a step serves B answers and, in proportion, the prompts that replace them.
The cheapest few are then run through the scheduler on a virtual clock, with replicas added until
the promise holds.
"""

from collections.abc import Iterable, Mapping
from math import ceil, inf, isinf
from typing import Any

from msgspec import Struct

from gateway.planner.errors import PlanError, TooLarge
from gateway.planner.hardware import Hardware
from gateway.planner.setups import Setup, Technique, place, queueing
from gateway.planner.shapes import WEIGHT_BYTES, ModelShape
from gateway.planner.simulate import Simulated, simulate
from gateway.planner.steps import COMPUTE_DTYPE, StepModel
from gateway.planner.workload import Slo, Workload

BUSY_SHARE = 0.8
"""Of a replica's steady-state capacity that is planned for: the rest absorbs bursts."""
HOURS_PER_MONTH = 730
USER_TOKENS_PER_S = 20.0
"""An interactive speed: faster than people read."""
USER_PERIOD_S = 60.0
"""Between two questions of one user."""
MOST_SIMULATED = 24
"""Set-ups whose promise is checked on the virtual clock, the cheapest on paper first."""
_SIMULATED_REQUESTS = 120
_MOST_TIMES = 4
"""The replicas that the load needs: if the promise does not hold with so many, it never does."""
_CLOSE = 1.12
"""Near enough to the fewest replicas that hold."""
_LAYOUTS = tuple((devices, stages) for stages in (1, 2, 4) for devices in (1, 2, 4, 8))


class Plan(Struct, frozen=True, kw_only=True):
    """A set-up, how many of it, and what that gives."""

    setup: Setup
    replicas: int
    batch: int
    capacity_per_s: float
    """Requests/s of one replica in steady state."""
    simulated: Simulated | None
    holds: bool
    """Whether the promise held on the virtual clock (or none was made)."""
    workload: Workload

    @property
    def busy_share(self) -> float:
        return self.workload.requests_per_s / (self.capacity_per_s * self.replicas)

    @property
    def usd_per_hour(self) -> float:
        return self.replicas * self.setup.usd_per_hour

    @property
    def usd_per_month(self) -> float:
        device = self.setup.hardware
        if device.usd_per_month is not None:
            return self.replicas * self.setup.all_devices * device.usd_per_month
        return self.usd_per_hour * HOURS_PER_MONTH

    @property
    def usd_per_million_tokens(self) -> float:
        """Of prompt and output together, at the planned load."""
        work = self.workload
        tokens = work.requests_per_s * (work.mean_prompt_tokens + work.mean_output_tokens)
        return self.usd_per_hour / (tokens * 3600) * 1e6

    @property
    def usd_per_million_output_tokens(self) -> float:
        """As if prompts were free."""
        made = self.workload.requests_per_s * self.workload.mean_output_tokens
        return self.usd_per_hour / (made * 3600) * 1e6

    @property
    def users_per_replica(self) -> int:
        """People who ask once a minute and whose answers come at an interactive speed."""
        batch = self.setup.best_batch(self.workload, Slo(tpot_p99_s=1 / USER_TOKENS_PER_S))
        if batch == 0:
            return 0
        per_s, _ = self.setup.steady_state(self.workload, batch)
        return int(per_s * BUSY_SHARE * USER_PERIOD_S)


def plan(
    shape: ModelShape,
    catalogue: Iterable[Hardware],
    workload: Workload,
    slo: Slo,
    *,
    precisions: Iterable[str] = ("bf16", "int8", "int4"),
    technique: Technique | None = None,
    measured: Mapping[str, StepModel] | None = None,
    keep: int = 5,
    most: int = MOST_SIMULATED,
) -> list[Plan]:
    """The cheapest set-ups that keep the promise, the cheapest first.

    Args:
        measured: step models by hardware name, from benchmark files.
        most: set-ups whose promise is checked on the virtual clock.

    Raises:
        PlanError: nothing can; says what came nearest and what would help.
    """
    precisions = tuple(precisions)
    unknown = [one for one in precisions if one not in WEIGHT_BYTES]
    if unknown:
        raise PlanError(f"precision {unknown[0]!r}; known: {', '.join(WEIGHT_BYTES)}")
    found: list[Plan] = []
    failures: list[PlanError] = []
    nearest: tuple[float, str] | None = None
    for hardware in catalogue:
        for precision in precisions:
            for devices, stages in _LAYOUTS:
                try:
                    setup = _setup(
                        shape, hardware, precision, devices, stages, workload, technique, measured
                    )
                except PlanError as error:
                    failures.append(error)
                    continue
                batch = setup.best_batch(workload, slo)
                if batch == 0:
                    tpot_s = setup.steady_state(workload, 1)[1]
                    words = f"{devices * stages} × {hardware.name} in {precision}"
                    nearest = min(nearest or (tpot_s, words), (tpot_s, words))
                    continue
                found.append(_on_paper(setup, batch, workload, slo))
    if not found:
        raise PlanError(_why_nothing(shape, failures, nearest, slo))
    found.sort(key=_preference)
    return _cheapest_that_hold(found, slo, keep, most)


def _preference(plan: Plan) -> tuple[float, float, int]:
    """Cheap ones first; at one price those that round weights least, then those of few devices."""
    rounded = -WEIGHT_BYTES[plan.setup.precision]
    return plan.usd_per_hour, rounded, plan.setup.all_devices


def _cheapest_that_hold(found: list[Plan], slo: Slo, keep: int, most: int) -> list[Plan]:
    """Simulate in order of price on paper, until what follows cannot be cheaper any more."""
    wanted_s = slo.ttft_p99_s or inf
    possible = [p for p in found if p.setup.first_token_s(p.workload, long=True) <= wanted_s]
    if not possible:
        best = min(found, key=lambda p: p.setup.first_token_s(p.workload, long=True))
        work = best.workload
        raise PlanError(
            f"no set-up gives a first token within {slo.ttft_p99_s:g} s: a prompt of "
            f"{work.long_prompt} tokens (p99) alone takes "
            f"{best.setup.first_token_s(work, long=True):.3g} s on the fastest, "
            f"{_words(best.setup)}. Allow more, shorten prompts, or cache their beginning."
        )
    checked: list[Plan] = []
    for paper in possible[:most]:
        best_usd = sorted(p.usd_per_hour for p in checked if p.holds)
        if len(best_usd) >= keep and paper.usd_per_hour >= best_usd[keep - 1]:
            break
        checked.append(_on_the_clock(paper, slo))
    if not any(p.holds for p in checked):
        raise PlanError(_why_missed(checked, slo))
    checked.sort(key=lambda p: (not p.holds, _preference(p)))
    return [p for p in checked if p.holds][:keep]


def _setup(
    shape: ModelShape,
    hardware: Hardware,
    precision: str,
    devices: int,
    stages: int,
    workload: Workload,
    technique: Technique | None,
    measured: Mapping[str, StepModel] | None,
) -> Setup:
    if precision == "fp8" and COMPUTE_DTYPE["fp8"] not in hardware.tflops:
        raise PlanError(f"{hardware.name} has no fp8 units")
    step = (measured or {}).get(hardware.name)
    if step is not None and devices * stages > 1:
        raise PlanError(f"{hardware.name}: measured on one device only")
    return place(shape, hardware, precision, devices, workload, technique, step, stages)


def _on_paper(setup: Setup, batch: int, workload: Workload, slo: Slo) -> Plan:
    per_s, _ = setup.steady_state(workload, batch)
    return Plan(
        setup=setup,
        replicas=ceil(workload.requests_per_s / (per_s * BUSY_SHARE)),
        batch=batch,
        capacity_per_s=per_s,
        simulated=None,
        holds=slo == Slo(),
        workload=workload,
    )


def _on_the_clock(paper: Plan, slo: Slo) -> Plan:
    """Simulate one replica at its share of the load, with more replicas until the promise holds.

    Stages take turns with parts of the batch: one part, with its share of the load, is simulated.
    """
    few, many = paper.replicas, paper.replicas * _MOST_TIMES
    simulated = run_replica(paper.setup, paper.workload, few)
    replicas, holds = few, slo.holds(simulated.ttft_p99_s, simulated.tpot_p99_s)
    if not holds:
        simulated = run_replica(paper.setup, paper.workload, many)
        replicas, holds = many, slo.holds(simulated.ttft_p99_s, simulated.tpot_p99_s)
    while holds and replicas > few and many > max(few + 1, round(few * _CLOSE)):
        middle = max(few + 1, round((few * many) ** 0.5))
        if middle >= many:
            break
        run = run_replica(paper.setup, paper.workload, middle)
        if slo.holds(run.ttft_p99_s, run.tpot_p99_s):
            simulated, replicas, many = run, middle, middle
        else:
            few = middle
    return Plan(
        setup=paper.setup,
        replicas=replicas,
        batch=paper.batch,
        capacity_per_s=paper.capacity_per_s,
        simulated=simulated,
        holds=holds,
        workload=paper.workload,
    )


def run_replica(setup: Setup, workload: Workload, replicas: int, load: float = 1.0) -> Simulated:
    """One of so many replicas under its share of `load` times the workload."""
    rate = load * workload.requests_per_s / (replicas * setup.stages)
    arrivals = workload.arrivals(rate, _SIMULATED_REQUESTS / rate)
    technique = setup.technique
    return simulate(
        arrivals,
        setup.step,
        setup.engine_config(workload.longest),
        tokens_per_step=technique.tokens_per_step,
        step_factor=technique.step_factor,
    )


def _words(setup: Setup) -> str:
    return f"{setup.all_devices} × {setup.hardware.name} in {setup.precision}"


def _why_missed(checked: list[Plan], slo: Slo) -> str:
    """The promise held for none of those simulated: what each part came to at best."""
    runs = [(p.simulated, p) for p in checked if p.simulated is not None]
    run, best = min(
        runs,
        key=lambda pair: max(
            pair[0].ttft_p99_s / (slo.ttft_p99_s or 1e9),
            pair[0].tpot_p99_s / (slo.tpot_p99_s or 1e9),
        ),
    )
    return (
        f"the promise held nowhere, though replicas were added; nearest: {best.replicas} × "
        f"({_words(best.setup)}) with a first token within {run.ttft_p99_s:.3g} s and "
        f"{run.tpot_p99_s * 1e3:.3g} ms between tokens (p99). Promise that, shorten prompts, "
        "or add faster hardware to the catalogue."
    )


def _why_nothing(
    shape: ModelShape, failures: list[PlanError], nearest: tuple[float, str] | None, slo: Slo
) -> str:
    if nearest is not None and slo.tpot_p99_s is not None:
        return (
            f"no set-up makes a token of {shape.name} every {slo.tpot_p99_s * 1e3:g} ms; the "
            f"nearest is {nearest[1]}: {nearest[0] * 1e3:.1f} ms. Allow that, add devices or "
            "faster hardware, or take a smaller precision or model."
        )
    large = [error for error in failures if isinstance(error, TooLarge)]
    if large:
        closest = min(large, key=lambda error: error.times)
        return (
            f"{shape.name} fits nowhere; the closest: {closest}. Add larger hardware to the "
            "catalogue, or take shorter requests, a smaller precision or a smaller model."
        )
    why = failures[-1] if failures else "the catalogue is empty"
    return f"{shape.name} can be laid out nowhere; for example {why}."


def as_dict(found: Plan) -> dict[str, Any]:
    """A plan as plain data for JSON."""
    setup, run = found.setup, found.simulated
    rate = found.workload.requests_per_s / found.replicas
    queue = queueing(setup, found.workload, found.batch, rate)
    per_s, tpot_s = setup.steady_state(found.workload, found.batch)
    tokens = found.workload.mean_prompt_tokens + found.workload.mean_output_tokens
    return {
        "hardware": setup.hardware.name,
        "precision": setup.precision,
        "devices_per_replica": setup.all_devices,
        "layout": setup.layout or "whole",
        "tensor_parallel": setup.devices,
        "pipeline_stages": setup.stages,
        "all_reduce_ms_per_step": round(setup.all_reduce_ms, 4),
        "replicas": found.replicas,
        "holds_slo": found.holds,
        "usd_per_hour": round(found.usd_per_hour, 4),
        "usd_per_month": round(found.usd_per_month, 2),
        "usd_per_million_tokens": round(found.usd_per_million_tokens, 5),
        "usd_per_million_output_tokens": round(found.usd_per_million_output_tokens, 5),
        "users_per_replica": found.users_per_replica,
        "kv_room_tokens": setup.kv_tokens,
        "max_batch": setup.max_batch,
        "planned_batch": found.batch,
        "capacity_requests_per_s": round(found.capacity_per_s, 4),
        "busy_share": round(found.busy_share, 4),
        "step_times": setup.step.source,
        "prices_as_of": setup.hardware.as_of,
        "roofline": {
            "tokens_per_s": round(per_s * tokens, 1),
            "tpot_s": round(tpot_s, 6),
            "ttft_alone_s": round(setup.first_token_s(found.workload), 5),
        },
        "queueing": {
            name: None if isinf(value) else round(value, 5)
            for name in queue.__struct_fields__
            for value in (getattr(queue, name),)
        },
        "simulated": None
        if run is None
        else {name: getattr(run, name) for name in run.__struct_fields__},
    }
