"""What a step's time depends on, fitted to the steps of this model on this machine.

A step reads the weights once and does some work of its own (fixed), multiplies each token with
them (prompt tokens and decoded ones apart: a prompt's rows fill the arithmetic units, a single
decoded row is bound by memory), and reads the KV of every earlier token of each sequence (attended:
the bytes held, once per step in which they are held). So

    step_ns = fixed + prefill x prompt tokens + decode x decoded tokens + attend x attended tokens

with coefficients that are not negative. The form is that of the roofline's two lines added up, as
in Agrawal et al. 2024, "Vidur: A Large-Scale Simulation Framework for LLM Inference" (S4, operators
by token count and by context) and the profiled cost function of Sheng et al. 2024, "Fairness in
Serving Large Language Models" (S3). It is fitted as the engine runs: least squares of the relative
error with exponential forgetting, held near a prior where the traffic tells two terms not apart
(a machine that only ever decodes alone cannot know its fixed part). The prior's scale comes from
the first step seen, so the same code fits a laptop's CPU and an H200.

A request is charged its own terms; the fixed part, which one sequence alone would have cost as
well, is shared equally by all sequences of the step: that is why a full batch is cheaper for each.
"""

from typing import Final

from msgspec import Struct

_PRIOR: Final = (8.0, 1.0, 1.2, 0.0005)
"""Relative: fixed, one prompt token, one decoded token, one attended token."""
_PRIOR_STEPS: Final = 4.0
"""How many steps of evidence the prior is worth."""
_FORGET: Final = 0.999
_EARLY_STEPS: Final = 64
_REFIT_STEPS: Final = 64
_SWEEPS: Final = 12
_UNIT: Final = 64
"""Weights are whole 64ths of a nanosecond."""


class StepWork(Struct):
    """What was computed in a step."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    """Drafts to verify included."""
    attended_tokens: int = 0
    """Summed over the tokens: how many earlier ones each attends to."""


class StepCoefficients(Struct, frozen=True, kw_only=True):
    """Nanoseconds of each term."""

    fixed_ns: float
    prefill_ns: float
    decode_ns: float
    attend_ns: float


class StepCosts:
    """Learns the coefficients; gives each part of a step its weight."""

    def __init__(self) -> None:
        self._scale = 0.0
        """Nanoseconds of the prior's unit; 0: no step seen yet."""
        self._factors = [1.0] * 4
        """Coefficients over the prior's."""
        self._products = [[0.0] * 4 for _ in _PRIOR]
        self._targets = [0.0] * 4
        self._steps = 0
        self._weigh()

    def read(self) -> StepCoefficients:
        """The present fit."""
        fixed, prefill, decode, attend = (
            self._scale * prior * factor
            for prior, factor in zip(_PRIOR, self._factors, strict=True)
        )
        return StepCoefficients(
            fixed_ns=fixed, prefill_ns=prefill, decode_ns=decode, attend_ns=attend
        )

    def observe(self, work: StepWork, took_ns: int) -> None:
        """A step that computed `work` took so long."""
        if took_ns <= 0:
            return
        parts = (
            _PRIOR[0],
            _PRIOR[1] * work.prefill_tokens,
            _PRIOR[2] * work.decode_tokens,
            _PRIOR[3] * work.attended_tokens,
        )
        if not self._scale:
            self._scale = took_ns / sum(parts)
        ratio = self._scale / took_ns
        x = [part * ratio for part in parts]
        for row, own in zip(self._products, x, strict=True):
            for place, other in enumerate(x):
                row[place] = row[place] * _FORGET + own * other
        self._targets = [was * _FORGET + own for was, own in zip(self._targets, x, strict=True)]
        self._steps += 1
        if self._steps < _EARLY_STEPS or self._steps % _REFIT_STEPS == 0:
            self._fit()

    def weight_of(self, ns: int) -> int:
        """Of work that was measured apart."""
        return ns * _UNIT

    def _fit(self) -> None:
        """Coordinate descent on the normal equations, no factor below zero."""
        factors = self._factors
        for _ in range(_SWEEPS):
            for place, row in enumerate(self._products):
                others = sum(row[other] * factors[other] for other in range(4) if other != place)
                # The prior's steps say: a factor of 1.
                target = self._targets[place] + _PRIOR_STEPS - others
                factors[place] = max(0.0, target / (row[place] + _PRIOR_STEPS))
        self._weigh()

    def _weigh(self) -> None:
        scale = (self._scale or 1_000.0) * _UNIT
        fixed, prefill, decode, attend = (
            round(scale * prior * factor)
            for prior, factor in zip(_PRIOR, self._factors, strict=True)
        )
        self.fixed_weight = fixed
        self.prefill_weight = prefill
        self.decode_weight = decode
        self.attend_weight = attend
