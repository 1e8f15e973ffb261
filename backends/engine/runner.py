"""The seam between the scheduler and whatever computes: one step in, sampled tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from backends.contract import TokenLogprob
from backends.engine.request import Request


class ScheduledSequence(Struct, gc=False):
    """A part of one sequence to process in this step.

    The tokens are [start, start + num_tokens) of `request.token_ids + request.draft_token_ids`;
    the last `num_drafts` of them are drafts. Their KV goes to the slots of `request.block_ids`.
    """

    request: Request
    start: int
    num_tokens: int
    num_drafts: int = 0

    @property
    def samples(self) -> bool:
        """Whether the part reaches the end of the known tokens, so that a token is sampled."""
        end = self.start + self.num_tokens - self.num_drafts
        return end == len(self.request.token_ids)


@dataclass(slots=True)
class SchedulerOutput:
    """One step: decoding sequences first, then prompts (or parts of them)."""

    sequences: list[ScheduledSequence]
    num_tokens: int
    """Over all sequences, drafts included."""
    preempted: list[Request] = field(default_factory=list)
    """Gave up their blocks in this step; they will be recomputed later."""


class SampleResult(Struct, gc=False):
    """What one scheduled sequence got.

    For a sequence that samples: the accepted drafts, then one more token (1 to num_drafts + 1).
    For a prompt not yet at its end: nothing. `logprobs` is aligned to `token_ids`, or empty if
    the request did not ask.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Runner(Protocol):
    """One forward pass and the sampling after it."""

    def execute(self, output: SchedulerOutput) -> Sequence[SampleResult]:
        """Compute one step; results are aligned to `output.sequences`.

        KV of all scheduled tokens, drafts included, is written; rejected ones are overwritten
        by a later step.
        """
        ...
