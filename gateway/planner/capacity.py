"""From a model, a load and a promise to the machines that keep it, cheapest first.

Every set-up (device, precision, tensor parallelism) is first judged by its steady state: at batch
size B a step serves B answers and, in proportion, the prompts that replace them. The cheapest few
are then run through the scheduler on a virtual clock, with replicas added until the promise holds.
"""

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

from msgspec import Struct

from backends.engine.config import EngineConfig
from gateway.planner.errors import PlanError
from gateway.planner.hardware import Hardware
from gateway.planner.shapes import WEIGHT_BYTES, ModelShape
from gateway.planner.simulate import Simulated, simulate
from gateway.planner.steps import COMPUTE_DTYPE, Roofline, StepModel, Work
from gateway.planner.workload import Slo, Workload, percentile

BLOCK_TOKENS = 16
MEMORY_SHARE = 0.9
"""Of a device's memory; the rest is for activations and the driver."""
MAX_BATCH = 512
MAX_BATCHED_TOKENS = 2048
BUSY_SHARE = 0.8
"""Of a replica's steady-state capacity that is planned for: the rest absorbs bursts."""
HOURS_PER_MONTH = 730
_MORE_SIMULATED = 4
"""Set-ups beyond those asked for whose promise is checked on the virtual clock."""
_SIMULATED_REQUESTS = 150
_MORE_REPLICAS = 1.25
_TRIES = 8


class Technique(Struct, frozen=True, kw_only=True):
    """What the engine does to be faster."""

    kv_bytes: float = 2.0
    """Of one key or value element: 2 sixteen bits, 1 eight."""
    tokens_per_step: float = 1.0
    """A decoding sequence gains: speculation's mean accepted length + 1."""
    step_factor: float = 1.0
    """How much longer a step takes for it: drafting and verifying."""
    max_batch: int = MAX_BATCH


class Setup(Struct, frozen=True, kw_only=True):
    """One replica: devices of a kind, and how the model lies on them."""

    hardware: Hardware
    precision: str
    devices: int
    kv_tokens: int
    """Room of the KV cache."""
    max_batch: int
    """Sequences of mean length that fit it."""
    step: StepModel
    technique: Technique

    @property
    def usd_per_hour(self) -> float:
        return self.devices * self.hardware.usd_per_hour

    def steady_state(self, workload: Workload, batch: int) -> tuple[float, float]:
        """(requests/s, seconds between a sequence's tokens) with `batch` sequences decoding."""
        technique = self.technique
        prompt = workload.mean_prompt_tokens * (1 - workload.prefix_share)
        steps = max(1.0, workload.mean_output_tokens / technique.tokens_per_step)
        work = Work(
            steps=1.0,
            decode_tokens=batch,
            decode_attended=batch * (workload.mean_prompt_tokens + workload.mean_output_tokens / 2),
            prefill_tokens=batch * prompt / steps,
            prefill_attended=batch * prompt / steps * workload.mean_prompt_tokens / 2,
            prompts=batch / steps,
        )
        took = self.step.seconds(work) * technique.step_factor
        return batch / (steps * took), took / technique.tokens_per_step

    def best_batch(self, workload: Workload, slo: Slo) -> int:
        """The largest batch within memory whose token times keep the promise; 0: none does."""
        low, high = 0, self.max_batch
        while low < high:
            middle = (low + high + 1) // 2
            _, tpot_s = self.steady_state(workload, middle)
            if slo.tpot_p99_s is None or tpot_s <= slo.tpot_p99_s:
                low = middle
            else:
                high = middle - 1
        return low

    def engine_config(self, longest: int) -> EngineConfig:
        """The engine's configuration on such a replica."""
        return EngineConfig(
            num_blocks=self.kv_tokens // BLOCK_TOKENS,
            max_model_len=max(2, longest),
            block_size=BLOCK_TOKENS,
            max_num_seqs=min(self.technique.max_batch, MAX_BATCH),
            max_num_batched_tokens=MAX_BATCHED_TOKENS,
            enable_prefix_caching=False,  # the load says itself what is cached
        )


class Plan(Struct, frozen=True, kw_only=True):
    """A set-up, how many of it, and what that gives."""

    setup: Setup
    replicas: int
    batch: int
    capacity_per_s: float
    """Requests/s of one replica in steady state."""
    busy_share: float
    simulated: Simulated | None
    holds: bool
    """Whether the promise held on the virtual clock (or none was made)."""
    workload: Workload

    @property
    def usd_per_hour(self) -> float:
        return self.replicas * self.setup.usd_per_hour

    @property
    def usd_per_month(self) -> float:
        device = self.setup.hardware
        if device.usd_per_month is not None:
            return self.replicas * self.setup.devices * device.usd_per_month
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


def place(
    shape: ModelShape,
    hardware: Hardware,
    precision: str,
    devices: int,
    workload: Workload,
    technique: Technique | None = None,
    step: StepModel | None = None,
) -> Setup:
    """Lay a model on devices.

    Args:
        step: measured; None: by roofline.

    Raises:
        PlanError: weights or the longest request do not fit, or the heads cannot be divided.
    """
    technique = technique or Technique()
    where = f"{shape.name} in {precision} on {devices} × {hardware.name}"
    if devices > hardware.devices_per_machine:
        raise PlanError(f"{where}: a machine has {hardware.devices_per_machine} of them")
    if shape.heads % devices or (shape.kv_heads % devices and devices % shape.kv_heads):
        raise PlanError(f"{where}: {shape.heads} heads cannot be divided")
    memory = MEMORY_SHARE * hardware.memory_bytes * devices
    weights = shape.weight_bytes(precision)
    per_token = shape.kv_bytes_per_token(technique.kv_bytes) * max(1, devices // shape.kv_heads)
    room = int((memory - weights) / per_token)
    longest = _longest(workload)
    if room < longest + BLOCK_TOKENS:
        raise PlanError(
            f"{where}: {weights / 1e9:.1f} GB of weights and {longest} tokens of KV cache "
            f"({longest * per_token / 1e9:.1f} GB) need more than {memory / 1e9:.1f} GB"
        )
    mean = workload.mean_prompt_tokens + workload.mean_output_tokens
    step = step or Roofline(
        shape=shape,
        hardware=hardware,
        precision=precision,
        devices=devices,
        kv_bytes=technique.kv_bytes,
    )
    return Setup(
        hardware=hardware,
        precision=precision,
        devices=devices,
        kv_tokens=room,
        max_batch=max(1, min(technique.max_batch, int(room / mean))),
        step=step,
        technique=technique,
    )


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
) -> list[Plan]:
    """The cheapest set-ups that keep the promise, the cheapest first.

    Args:
        measured: step models by hardware name, from benchmark files.

    Raises:
        PlanError: nothing can; says what came nearest and what would help.
    """
    found: list[Plan] = []
    failures: list[str] = []
    nearest: tuple[float, str] | None = None
    for hardware in catalogue:
        for precision in precisions:
            for devices in (1, 2, 4, 8):
                try:
                    setup = _setup(
                        shape, hardware, precision, devices, workload, technique, measured
                    )
                except PlanError as error:
                    failures.append(str(error))
                    continue
                batch = setup.best_batch(workload, slo)
                if batch == 0:
                    tpot_s = setup.steady_state(workload, 1)[1]
                    words = f"{devices} × {hardware.name} in {precision}: {tpot_s * 1e3:.1f} ms"
                    nearest = min(nearest or (tpot_s, words), (tpot_s, words))
                    continue
                found.append(_on_paper(setup, batch, workload, slo))
    if not found:
        raise PlanError(_why_nothing(shape, failures, nearest, slo))
    found.sort(key=lambda p: (p.usd_per_hour, p.replicas * p.setup.devices))
    return _cheapest_that_hold(found, slo, keep)


def _cheapest_that_hold(found: list[Plan], slo: Slo, keep: int) -> list[Plan]:
    """Simulate in order of price on paper, until what follows cannot be cheaper any more."""
    checked: list[Plan] = []
    for paper in found[: keep + _MORE_SIMULATED]:
        best = sorted(p.usd_per_hour for p in checked if p.holds)
        if len(best) >= keep and paper.usd_per_hour >= best[keep - 1]:
            break
        checked.append(_on_the_clock(paper, slo))
    checked.sort(key=lambda p: (not p.holds, p.usd_per_hour))
    return checked[:keep]


def _setup(
    shape: ModelShape,
    hardware: Hardware,
    precision: str,
    devices: int,
    workload: Workload,
    technique: Technique | None,
    measured: Mapping[str, StepModel] | None,
) -> Setup:
    if precision not in WEIGHT_BYTES:
        raise PlanError(f"precision {precision!r}; known: {', '.join(WEIGHT_BYTES)}")
    if precision == "fp8" and COMPUTE_DTYPE["fp8"] not in hardware.tflops:
        raise PlanError(f"{hardware.name} has no fp8 units")
    step = (measured or {}).get(hardware.name)
    if step is not None and devices > 1:
        raise PlanError(f"{hardware.name}: measured on one device only")
    return place(shape, hardware, precision, devices, workload, technique, step)


def _on_paper(setup: Setup, batch: int, workload: Workload, slo: Slo) -> Plan:
    per_s, _ = setup.steady_state(workload, batch)
    replicas = ceil(workload.requests_per_s / (per_s * BUSY_SHARE))
    return Plan(
        setup=setup,
        replicas=replicas,
        batch=batch,
        capacity_per_s=per_s,
        busy_share=workload.requests_per_s / (per_s * replicas),
        simulated=None,
        holds=slo == Slo(),
        workload=workload,
    )


def _on_the_clock(paper: Plan, slo: Slo) -> Plan:
    """Simulate one replica at its share of the load, with more replicas until the promise holds."""
    workload, setup = paper.workload, paper.setup
    config = setup.engine_config(_longest(workload))
    replicas, simulated = paper.replicas, paper.simulated
    for _ in range(_TRIES):
        rate = workload.requests_per_s / replicas
        load = workload.arrivals(rate, _SIMULATED_REQUESTS / rate)
        simulated = simulate(
            load, setup.step, config, tokens_per_step=setup.technique.tokens_per_step
        )
        holds = slo.holds(simulated.ttft_p99_s, simulated.tpot_p99_s)
        if holds:
            break
        replicas = max(replicas + 1, ceil(replicas * _MORE_REPLICAS))
    return Plan(
        setup=setup,
        replicas=replicas,
        batch=paper.batch,
        capacity_per_s=paper.capacity_per_s,
        busy_share=workload.requests_per_s / (paper.capacity_per_s * replicas),
        simulated=simulated,
        holds=holds,
        workload=workload,
    )


def _longest(workload: Workload) -> int:
    """Tokens of all but the longest hundredth of requests: what a replica must hold."""
    return int(percentile([prompt + output for prompt, output in workload.lengths], 0.99)) + 1


def _why_nothing(
    shape: ModelShape, failures: list[str], nearest: tuple[float, str] | None, slo: Slo
) -> str:
    if nearest is not None and slo.tpot_p99_s is not None:
        return (
            f"no set-up makes a token of {shape.name} every {slo.tpot_p99_s * 1e3:g} ms; the "
            f"nearest is {nearest[1]}. Allow that, add devices or faster hardware, or take a "
            "smaller precision or model."
        )
    shown = failures[-1] if failures else "the catalogue is empty"
    return f"{shape.name} fits nowhere; for example {shown}. Add hardware or a smaller precision."


def as_dict(found: Plan) -> dict[str, Any]:
    """A plan as plain data for JSON."""
    setup, run = found.setup, found.simulated
    return {
        "hardware": setup.hardware.name,
        "precision": setup.precision,
        "devices_per_replica": setup.devices,
        "replicas": found.replicas,
        "holds_slo": found.holds,
        "usd_per_hour": round(found.usd_per_hour, 4),
        "usd_per_month": round(found.usd_per_month, 2),
        "usd_per_million_tokens": round(found.usd_per_million_tokens, 5),
        "usd_per_million_output_tokens": round(found.usd_per_million_output_tokens, 5),
        "kv_room_tokens": setup.kv_tokens,
        "max_batch": setup.max_batch,
        "planned_batch": found.batch,
        "capacity_requests_per_s": round(found.capacity_per_s, 4),
        "busy_share": round(found.busy_share, 4),
        "step_times": setup.step.source,
        "prices_as_of": setup.hardware.as_of,
        "simulated": None
        if run is None
        else {name: getattr(run, name) for name in run.__struct_fields__},
    }
