"""What the sampler keeps for one sequence between steps."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from backends.contract import SamplingParams
from backends.sampling.grammar import Matcher
from backends.sampling.random import stream_key

GREEDY_BELOW: Final = 1e-5
"""A temperature under this is greedy: dividing by it would overflow."""


class TokenCounts:
    """Which tokens a sequence holds, and how often each was generated: for the penalties."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids = np.unique(np.asarray(prompt, dtype=np.int64))
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._used = len(self._ids)
        self._place = {int(token): place for place, token in enumerate(self._ids)}
        self._seen = 0

    def update(self, outputs: Sequence[int]) -> None:
        """Count the outputs that came since the last call."""
        for token in outputs[self._seen :]:
            self._add(token)
        self._seen = len(outputs)

    def with_drafts(
        self, drafts: Sequence[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return token ids and how often each was generated, as if `drafts` had been too."""
        if not drafts:
            return self._ids[: self._used], self._counts[: self._used]
        ids, counts = self._ids[: self._used], self._counts[: self._used].copy()
        new: dict[int, int] = {}
        for token in drafts:
            if token in self._place:
                counts[self._place[token]] += 1
            else:
                new[token] = new.get(token, 0) + 1
        return (
            np.concatenate([ids, np.fromiter(new.keys(), dtype=np.int64)]),
            np.concatenate([counts, np.fromiter(new.values(), dtype=np.float32)]),
        )

    def _add(self, token: int) -> None:
        place = self._place.get(token)
        if place is None:
            if self._used == len(self._ids):
                spare = max(64, self._used)
                self._ids = np.concatenate([self._ids, np.zeros(spare, dtype=np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros(spare, dtype=np.float32)])
            place = self._place[token] = self._used
            self._ids[place] = token
            self._used += 1
        self._counts[place] += 1


class SamplingState:
    """One sequence's parameters in the form the sampler reads them."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        seed: int,
        end_ids: Sequence[int] = (),
    ) -> None:
        """Prepare what does not change from step to step.

        Args:
            params: Validated.
            prompt: The prompt's token ids.
            seed: Of this sequence: `params.seed` and the choice's index are folded into it.
            end_ids: Tokens that end the answer; banned until `min_tokens` are out.
        """
        self.params = params
        self.greedy = params.temperature < GREEDY_BELOW
        self.key = stream_key(seed)
        self.penalised = (
            params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
            or params.repetition_penalty != 1.0
        )
        self.counts = TokenCounts(prompt) if self.penalised else None
        self.min_tokens = params.min_tokens if end_ids else 0
        self.end_ids = np.asarray(sorted(end_ids), dtype=np.int64)
        self.bias_ids = np.asarray(list(params.logit_bias), dtype=np.int64)
        self.bias_values = np.asarray(list(params.logit_bias.values()), dtype=np.float32)
        self.names_tokens = bool(params.logit_bias) or self.min_tokens > 0
        """Whether some logits are changed by name."""
        self.edits_logits = self.penalised or self.names_tokens
        self.plain_greedy = (
            self.greedy
            and not self.edits_logits
            and params.logprobs is None
            and params.structured_outputs is None
        )


class SequenceRows(NamedTuple):
    """One sequence's rows in a batch of logits: one for each draft token, then one more."""

    state: SamplingState
    outputs: Sequence[int]
    """Tokens generated so far, drafts not among them."""
    drafts: Sequence[int] = ()
    """Tokens proposed to come next; row i is sampled as if drafts[:i] were accepted."""
    matcher: Matcher | None = None
    """Says which tokens keep to the answer's form; None: it has none."""
