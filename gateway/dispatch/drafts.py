"""Whether a rejected answer is worth sending along as a draft for the next rung to verify.

A draft saves decoding steps where the larger model agrees with it, and costs verified tokens where
it does not. Below BREAK_EVEN of them accepted it does not pay, so it stays behind, and is tried
again once in a while. Our engine decides the same for each step; this keeps it from being asked.
"""

from msgspec import Struct

from backends.contract import Usage

BREAK_EVEN = 0.15
"""Share of verified draft tokens that were right."""
FIRST_TRIALS = 6.0
"""Answers' worth of a good guess before there is anything to go by."""
GUESS = 0.5
FADE = 0.95
TRY_AGAIN_EVERY = 20


class _Record(Struct):
    right: float = FIRST_TRIALS * GUESS
    seen: float = FIRST_TRIALS
    held_back: int = 0


class Drafts:
    """What became of drafts, by who wrote and who verified them."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], _Record] = {}

    def pays(self, author: str, verifier: str) -> bool:
        """Whether to send a draft now; each call counts."""
        record = self._records.setdefault((author, verifier), _Record())
        if record.right >= BREAK_EVEN * record.seen:
            return True
        record.held_back += 1
        return record.held_back % TRY_AGAIN_EVERY == 0

    def learn(self, author: str, verifier: str, usage: Usage | None) -> None:
        """Take in what became of a draft that was sent; each answer counts the same."""
        accepted = usage.accepted_prediction_tokens if usage else 0
        proposed = accepted + (usage.rejected_prediction_tokens if usage else 0)
        if not proposed:
            return  # it was not even tried: too short, or speculation is off there
        record = self._records.setdefault((author, verifier), _Record())
        record.right = record.right * FADE + accepted / proposed
        record.seen = record.seen * FADE + 1.0
