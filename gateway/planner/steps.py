"""How long one engine step takes: by roofline, or fitted to measured steps.

A step computes `tokens` (decoding sequences bring one each, prompts a chunk) for `sequences`, and
its attention reads the keys and values of `kv_tokens`. It cannot be faster than reading the weights
and that cache once, nor than its multiplications (Williams et al. 2009, "Roofline"); tensor
parallelism divides both and adds two all-reduces a layer (Shoeybi et al. 2019, "Megatron-LM").
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct

from gateway.planner.errors import PlanError
from gateway.planner.hardware import Hardware
from gateway.planner.shapes import ModelShape

COMPUTE_DTYPE = {"fp32": "fp32", "bf16": "bf16", "fp8": "fp8", "int8": "bf16", "int4": "bf16"}
"""Weight-only int8 and int4 are multiplied in 16 bits."""


class StepModel(Protocol):
    """Seconds of a step on one replica."""

    @property
    def source(self) -> str:
        """assumed, or the file it was measured in."""
        ...

    def seconds(self, tokens: int, sequences: int, kv_tokens: int) -> float:
        """One step's wall time."""
        ...


class Roofline(Struct, frozen=True, kw_only=True):
    """Datasheet rates times the share of them that good engines reach."""

    shape: ModelShape
    hardware: Hardware
    precision: str = "bf16"
    devices: int = 1
    """Tensor parallelism."""
    kv_bytes: float = 2.0
    """Of one key or value element."""
    bandwidth_share: float = 0.75
    compute_share: float = 0.55
    overhead_s: float = 0.001
    """Per step: scheduling, launches, sampling."""

    @property
    def source(self) -> str:
        return "assumed"

    def seconds(self, tokens: int, sequences: int, kv_tokens: int) -> float:
        """max(memory, compute) + all-reduces + overhead."""
        if tokens <= 0:
            return 0.0
        shape, hardware = self.shape, self.hardware
        read = shape.read_bytes(self.precision)
        read += kv_tokens * shape.kv_bytes_per_token(self.kv_bytes)
        bandwidth = hardware.bandwidth_gb_s * 1e9 * self.bandwidth_share * self.devices
        context = kv_tokens / max(1, sequences)
        flops = tokens * shape.flops_per_token(context)
        rate = hardware.flops(COMPUTE_DTYPE[self.precision]) * self.compute_share * self.devices
        return max(read / bandwidth, flops / rate) + self.all_reduce_s(tokens) + self.overhead_s

    def all_reduce_s(self, tokens: int) -> float:
        """Two ring all-reduces a layer of `tokens` × hidden 16-bit values; 0 on one device."""
        if self.devices == 1:
            return 0.0
        sent = 2.0 * (self.devices - 1) / self.devices * tokens * self.shape.hidden * 2
        one = sent / (self.hardware.link_gb_s * 1e9) + self.hardware.link_latency_us * 1e-6
        return 2 * self.shape.layers * one


class MeasuredStep(Struct, frozen=True, kw_only=True):
    """A step that somebody timed."""

    shape: ModelShape
    precision: str
    tokens: int
    sequences: int
    kv_tokens: int
    seconds: float


class Fitted(Struct, frozen=True, kw_only=True):
    """A sum of costs, each at a rate fitted to measured steps of this machine.

    Holds for other models on the same machine too: the rates are per byte and per operation, not
    per step. No term is negative (Lawson and Hanson 1974, non-negative least squares).
    """

    shape: ModelShape
    precision: str
    rates: tuple[float, ...]
    """Seconds per unit of each of `features`."""
    source: str

    def seconds(self, tokens: int, sequences: int, kv_tokens: int) -> float:
        """The fitted sum."""
        if tokens <= 0:
            return 0.0
        units = features(self.shape, self.precision, tokens, sequences, kv_tokens)
        return sum(rate * unit for rate, unit in zip(self.rates, units, strict=True))


def features(
    shape: ModelShape, precision: str, tokens: int, sequences: int, kv_tokens: int
) -> tuple[float, ...]:
    """What a step's time is made of: the step, its layers, weight bytes, operations, cache bytes,
    sampled rows."""
    return (
        1.0,
        float(shape.layers),
        shape.read_bytes(precision),
        tokens * shape.flops_per_token(0.0),
        kv_tokens * shape.kv_bytes_per_token(),
        float(sequences),
    )


def fit(measured: Sequence[MeasuredStep], shape: ModelShape, precision: str, source: str) -> Fitted:
    """Rates that explain the measured steps with the least relative error.

    Raises:
        PlanError: fewer than two measurements.
    """
    if len(measured) < 2:
        raise PlanError(f"{source}: {len(measured)} measurements; calibrating needs at least 2")
    rows = np.array(
        [features(m.shape, m.precision, m.tokens, m.sequences, m.kv_tokens) for m in measured]
    )
    seconds = np.array([m.seconds for m in measured])
    scale = rows.max(axis=0)
    scale[scale == 0] = 1.0
    rates = _non_negative(rows / scale / seconds[:, None], np.ones(len(measured))) / scale
    return Fitted(
        shape=shape, precision=precision, rates=tuple(float(r) for r in rates), source=source
    )


def _non_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """argmin ‖matrix·x − target‖ with x ≥ 0, by the active-set method of Lawson and Hanson."""
    columns = matrix.shape[1]
    x = np.zeros(columns)
    free = np.zeros(columns, dtype=bool)
    for _ in range(10 * columns):
        gradient = matrix.T @ (target - matrix @ x)
        gradient[free] = 0.0
        if gradient.max(initial=0.0) <= 1e-10:
            break
        free[int(gradient.argmax())] = True
        while True:
            trial = np.zeros(columns)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            if trial[free].min() > 0:
                x = trial
                break
            low = free & (trial <= 0)
            step = float(np.min(x[low] / np.maximum(x[low] - trial[low], 1e-300)))
            x = x + step * (trial - x)
            free &= x > 1e-14
            if not free.any():
                return np.zeros(columns)
    return x
