"""One replica: how a model lies on devices, how much room is left, what it does in steady state."""

from math import ceil, inf, log

from msgspec import Struct

from backends.engine.config import EngineConfig
from gateway.planner.errors import PlanError, TooLarge
from gateway.planner.hardware import Hardware
from gateway.planner.shapes import ModelShape
from gateway.planner.steps import Roofline, StepModel, Work
from gateway.planner.workload import Slo, Workload

BLOCK_TOKENS = 64
"""Coarser than an engine's, for the simulator's speed: half a block a sequence is lost."""
MEMORY_SHARE = 0.9
"""Of a device's memory; the rest is for activations and the driver."""
MAX_BATCH = 512
MAX_BATCHED_TOKENS = 2048


class Technique(Struct, frozen=True, kw_only=True):
    """What the engine does to be faster."""

    kv_bytes: float | None = None
    """Of one key or value element: 2 sixteen bits, 1 eight. None: as the engine has it, 4 on a CPU,
    2 on a GPU."""
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
    """Tensor parallelism."""
    stages: int
    """Pipeline parallelism."""
    kv_tokens: int
    """Room of the KV cache."""
    max_batch: int
    """Sequences of mean length that fit it."""
    step: StepModel
    technique: Technique

    @property
    def all_devices(self) -> int:
        return self.devices * self.stages

    @property
    def layout(self) -> str:
        """`TP=2 PP=2`; empty: one device, whole."""
        parts = (("TP", self.devices), ("PP", self.stages))
        return " ".join(f"{name}={count}" for name, count in parts if count > 1)

    @property
    def usd_per_hour(self) -> float:
        return self.all_devices * self.hardware.usd_per_hour

    @property
    def all_reduce_ms(self) -> float:
        """Of a decode step at the largest batch: what the links between devices cost."""
        if not isinstance(self.step, Roofline):
            return 0.0
        return 1e3 * self.step.all_reduce_s(self.max_batch / self.stages)

    def steady_state(self, workload: Workload, batch: int) -> tuple[float, float]:
        """(requests/s, seconds between a sequence's tokens) with `batch` sequences decoding.

        With stages, each works on its part of the batch while the others work on theirs.
        """
        technique = self.technique
        prompt = workload.mean_prompt_tokens * (1 - workload.prefix_share)
        steps = max(1.0, workload.mean_output_tokens / technique.tokens_per_step)
        together = max(1.0, batch / self.stages)
        context = workload.mean_prompt_tokens + workload.mean_output_tokens / 2
        prefilled = together * prompt / steps
        work = Work(
            steps=1.0,
            decode_tokens=together,
            decode_attended=together * context,
            prefill_tokens=prefilled,
            prefill_attended=prefilled * workload.mean_prompt_tokens / 2,
            prompts=together / steps,
        )
        took = self.step.seconds(work) * technique.step_factor
        return batch / (steps * took), took / technique.tokens_per_step

    def best_batch(self, workload: Workload, slo: Slo) -> int:
        """The largest batch within memory whose token times keep the promise; 0: none does."""
        wanted_s = slo.tpot_p99_s
        if wanted_s is None or self.steady_state(workload, self.max_batch)[1] <= wanted_s:
            return self.max_batch
        low, high = 0, self.max_batch - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.steady_state(workload, middle)[1] <= wanted_s:
                low = middle
            else:
                high = middle - 1
        return low

    def first_token_s(self, workload: Workload, *, long: bool = False) -> float:
        """Of a mean prompt that has the replica for itself, or of one of the longest hundredth."""
        whole = workload.long_prompt if long else workload.mean_prompt_tokens
        prompt = whole * (1 - workload.prefix_share)
        steps = max(1.0, ceil(prompt / MAX_BATCHED_TOKENS))
        alone = Work(steps, 0.0, 0.0, prompt, prompt * whole / 2)
        return self.step.request_s + self.step.seconds(alone) * self.technique.step_factor

    def engine_config(self, longest: int) -> EngineConfig:
        """The engine's configuration; with stages, of the part of a batch that one works on."""
        seats = max(1, min(self.technique.max_batch, MAX_BATCH) // self.stages)
        return EngineConfig(
            num_blocks=self.kv_tokens // BLOCK_TOKENS // self.stages,
            max_model_len=max(2, longest),
            block_size=BLOCK_TOKENS,
            max_num_seqs=seats,
            max_num_batched_tokens=MAX_BATCHED_TOKENS,
            enable_prefix_caching=False,  # the load says itself what is cached
        )


class Queueing(Struct, frozen=True, kw_only=True):
    """A replica as seats at which requests are served, arriving at random: M/M/c."""

    utilisation: float
    waits_share: float
    """Of requests that find all seats taken (Erlang 1917, formula C)."""
    wait_mean_s: float
    wait_p99_s: float
    service_s: float
    """From the first step to the last token, at the planned batch."""


def queueing(setup: Setup, workload: Workload, batch: int, rate_per_s: float) -> Queueing:
    """How long requests wait for a seat when `batch` may be served at once."""
    per_s, tpot_s = setup.steady_state(workload, batch)
    service_s = setup.first_token_s(workload) + tpot_s * max(0.0, workload.mean_output_tokens - 1)
    busy = rate_per_s / per_s
    if busy >= 1.0:
        return Queueing(
            utilisation=busy, waits_share=1.0, wait_mean_s=inf, wait_p99_s=inf, service_s=service_s
        )
    waits = _erlang_c(batch, batch * busy)
    drain_s = 1.0 / (per_s - rate_per_s)
    return Queueing(
        utilisation=busy,
        waits_share=waits,
        wait_mean_s=waits * drain_s,
        wait_p99_s=max(0.0, drain_s * log(max(1e-300, waits) / 0.01)),
        service_s=service_s,
    )


def _erlang_c(seats: int, load: float) -> float:
    """The share of arrivals that wait, by the recursion of Erlang B."""
    blocked = 1.0
    for seat in range(1, seats + 1):
        blocked = load * blocked / (seat + load * blocked)
    return blocked / (1.0 - load / seats * (1.0 - blocked))


def place(
    shape: ModelShape,
    hardware: Hardware,
    precision: str,
    devices: int,
    workload: Workload,
    technique: Technique | None = None,
    step: StepModel | None = None,
    stages: int = 1,
) -> Setup:
    """Lay a model on devices.

    Args:
        step: measured; None: by roofline.

    Raises:
        TooLarge: weights or the longest request do not fit.
        PlanError: heads or layers cannot be divided.
    """
    technique = technique or Technique()
    many = f"{devices * stages} × {hardware.name}"
    where = f"{shape.name} in {precision} on {many}"
    if devices > hardware.devices_per_machine:
        raise PlanError(
            f"{where}: tensor parallelism needs one machine, which has "
            f"{hardware.devices_per_machine}"
        )
    if shape.heads % devices or (shape.kv_heads % devices and devices % shape.kv_heads):
        raise PlanError(f"{where}: {shape.heads} heads cannot be divided by {devices}")
    if stages > shape.layers:
        raise PlanError(f"{where}: {shape.layers} layers cannot be {stages} stages")
    kv_bytes = technique.kv_bytes or (4.0 if hardware.kind == "cpu" else 2.0)
    memory = MEMORY_SHARE * hardware.memory_bytes * devices * stages
    weights = shape.weight_bytes(precision)
    per_token = shape.kv_bytes_per_token(kv_bytes) * max(1, devices // shape.kv_heads)
    room = int((memory - weights) / per_token)
    longest = workload.longest
    if room < (longest + BLOCK_TOKENS) * stages:
        needed = weights + (longest + BLOCK_TOKENS) * stages * per_token
        raise TooLarge(
            f"{where}: {weights / 1e9:.1f} GB of weights and {longest} tokens of KV cache "
            f"({longest * per_token / 1e9:.1f} GB) need {needed / 1e9:.1f} GB, there are "
            f"{memory / 1e9:.1f} GB; it takes "
            f"{ceil(needed / (MEMORY_SHARE * hardware.memory_bytes))} of them",
            needed / memory,
        )
    mean = workload.mean_prompt_tokens + workload.mean_output_tokens
    step = step or Roofline(
        shape=shape,
        hardware=hardware,
        precision=precision,
        devices=devices,
        stages=stages,
        kv_bytes=kv_bytes,
    )
    return Setup(
        hardware=hardware,
        precision=precision,
        devices=devices,
        stages=stages,
        kv_tokens=room,
        max_batch=max(1, min(technique.max_batch, int(room / mean))),
        step=step,
        technique=technique,
    )
