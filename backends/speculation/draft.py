"""A smaller model in the same process guesses; the large one verifies.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", with
greedy drafts: the draft distribution has all its mass on one token, so verification stays exact.
"""

from collections.abc import Sequence
from typing import Protocol

from backends.engine.request import Request


class DraftModel(Protocol):
    """A small model with the same vocabulary and KV of its own."""

    def propose(self, requests: Sequence[Request], num_tokens: int) -> list[list[int]]:
        """Its greedy next `num_tokens` tokens of each sequence, first catching up with
        `token_ids`; [] for a sequence that it cannot hold."""
        ...

    def forget(self, request: Request) -> None:
        """Free what it keeps for a request that has ended; called for unknown ones too."""
        ...


class DraftProposer:
    """One batched call of the draft model per step, as deep as the deepest limit."""

    name = "draft"
    reach = 1
    foresees = False
    costly = True

    def __init__(self, model: DraftModel) -> None:
        self._model = model

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """The draft model's greedy continuation of each sequence, cut to its limit."""
        if not requests:
            return []
        drafts = self._model.propose(requests, max(limits))
        return [draft[:limit] for draft, limit in zip(drafts, limits, strict=True)]

    def forget(self, request: Request) -> None:
        """Free the draft model's KV of the request."""
        self._model.forget(request)
