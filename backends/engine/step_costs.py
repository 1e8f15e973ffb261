"""What a step's time depends on, fitted to the steps of this model on this machine.

A step reads the weights once and does some work of its own (fixed), multiplies each token with
them (prompt tokens and decoded ones apart: a prompt's rows fill the arithmetic units, a single
decoded row is bound by memory), and reads the KV of every earlier token of each sequence (attended:
the bytes held, once per step in which they are held; a prompt's rows share each read). So

    step_ns = fixed + prefill x prompt tokens + prefill_attend x what those attend to
                    + decode x decoded tokens + decode_attend x what those attend to

with coefficients that are not negative (see `backends.fitting`). The form is that of the roofline's
two lines added up, as in Agrawal et al. 2024, "Vidur: A Large-Scale Simulation Framework for LLM
Inference" (operators by token count and by context) and the profiled cost function of Sheng et al.
2024, "Fairness in Serving Large Language Models". It is fitted as the engine runs, held near a
prior where the traffic tells two terms not apart (an engine that only ever decodes alone cannot
know its fixed part), so the same code fits a laptop's CPU and an H200.

A request is charged its own terms; the fixed part, which one sequence alone would have cost as
well, is shared equally by all sequences of the step: that is why a full batch is cheaper for each.

Why equally: a step's cost as a game among its sequences is v(S) = fixed + the terms of S, and
v({}) = 0. In a random order of arrival each sequence is the first, who brings the fixed part, once
in n times, and brings its own terms always: fixed / n + own terms is its Shapley value (Shapley
1953; with shared costs, Littlechild and Owen 1973, "A Simple Expression for the Shapley Value in a
Special Case", where here all planes need the same first piece of the runway). It is the only rule
that hands out the step exactly, charges equals equally, nothing to who adds nothing, and adds up
over steps. Of a request that is alone it is what leaving it out saves, and in a backlog nearly so.
Where requests merely share steps that the others need as well, leaving one out saves less than its
share, and all such savings together less than the steps: no rule can hand out all of the time and
agree with each of them.
"""

from typing import Final

from msgspec import Struct

from backends.fitting import LinearFit

_PRIOR: Final = (8.0, 1.0, 0.0002, 1.2, 0.0005)
"""Relative, in the order of StepCoefficients."""
_DOUBTFUL: Final = 0.5
_MEMORY: Final = 10_000
"""Steps. Beside neighbours the same step takes between two thirds and twice its median: a thousand
tell the price of a prompt to 15 %, ten thousand to 2 %."""
_UNIT: Final = 64
"""Weights are whole 64ths of a nanosecond."""


class StepWork(Struct):
    """What was computed in a step."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    """Drafts to verify included."""
    prefill_attended: int = 0
    """Summed over the prompt tokens: how many tokens each attends to."""
    decode_attended: int = 0


class StepCoefficients(Struct, frozen=True, kw_only=True):
    """Nanoseconds of each term."""

    fixed_ns: float
    prefill_ns: float
    prefill_attend_ns: float
    decode_ns: float
    decode_attend_ns: float


class StepCosts:
    """Learns the coefficients; gives each part of a step its weight."""

    def __init__(self) -> None:
        self._fit = LinearFit(_PRIOR, doubtful=_DOUBTFUL, memory=_MEMORY)
        self._weigh()

    def read(self) -> StepCoefficients:
        """The present fit."""
        names = StepCoefficients.__struct_fields__
        return StepCoefficients(**dict(zip(names, self._fit.coefficients(), strict=True)))

    def observe(self, work: StepWork, took_ns: int) -> None:
        """A step that computed `work` took so long."""
        prefill = (work.prefill_tokens, work.prefill_attended)
        self._fit.observe((1, *prefill, work.decode_tokens, work.decode_attended), took_ns)
        if self._fit.changes != self._weighed:
            self._weigh()

    def weight_of(self, ns: int) -> int:
        """Of work that was measured apart."""
        return ns * _UNIT

    def _weigh(self) -> None:
        unit = _UNIT if self._fit.fitted else _UNIT * 1_000
        weights = [round(ns * unit) for ns in self._fit.coefficients()]
        self.fixed_weight = weights[0]
        self.prefill_weight, self.prefill_attend_weight = weights[1:3]
        self.decode_weight, self.decode_attend_weight = weights[3:]
        self._weighed = self._fit.changes
