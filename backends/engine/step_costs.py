"""What a step's time depends on, fitted to the steps of this model on this machine.

A step reads the weights once and does some work of its own (fixed), multiplies each token with
them (prompt tokens and decoded ones apart: a prompt's rows fill the arithmetic units, a single
decoded row is bound by memory), and reads the KV of every earlier token of each sequence (attended:
the bytes held, once per step in which they are held). So

    step_ns = fixed + prefill x prompt tokens + decode x decoded tokens + attend x attended tokens

with coefficients that are not negative (see `backends.fitting`). The form is that of the roofline's
two lines added up, as in Agrawal et al. 2024, "Vidur: A Large-Scale Simulation Framework for LLM
Inference" (operators by token count and by context) and the profiled cost function of Sheng et al.
2024, "Fairness in Serving Large Language Models". It is fitted as the engine runs, held near a
prior where the traffic tells two terms not apart (an engine that only ever decodes alone cannot
know its fixed part), so the same code fits a laptop's CPU and an H200.

A request is charged its own terms; the fixed part, which one sequence alone would have cost as
well, is shared equally by all sequences of the step: that is why a full batch is cheaper for each.
"""

from typing import Final

from msgspec import Struct

from backends.fitting import LinearFit

_PRIOR: Final = (8.0, 1.0, 1.2, 0.0005)
"""Relative: fixed, one prompt token, one decoded token, one attended token."""
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
        self._fit = LinearFit(_PRIOR)
        self._weigh()

    def read(self) -> StepCoefficients:
        """The present fit."""
        fixed, prefill, decode, attend = self._fit.coefficients()
        return StepCoefficients(
            fixed_ns=fixed, prefill_ns=prefill, decode_ns=decode, attend_ns=attend
        )

    def observe(self, work: StepWork, took_ns: int) -> None:
        """A step that computed `work` took so long."""
        terms = (1, work.prefill_tokens, work.decode_tokens, work.attended_tokens)
        self._fit.observe(terms, took_ns)
        if self._fit.changes != self._weighed:
            self._weigh()

    def weight_of(self, ns: int) -> int:
        """Of work that was measured apart."""
        return ns * _UNIT

    def _weigh(self) -> None:
        unit = _UNIT if self._fit.fitted else _UNIT * 1_000
        fixed, prefill, decode, attend = (round(ns * unit) for ns in self._fit.coefficients())
        self.fixed_weight = fixed
        self.prefill_weight = prefill
        self.decode_weight = decode
        self.attend_weight = attend
        self._weighed = self._fit.changes
