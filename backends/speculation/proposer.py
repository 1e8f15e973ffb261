"""The seam of speculation: whoever guesses an answer's next tokens.

Guesses are verified by the model in the same pass that computes the next token; a wrong one
costs time, never changes the answer. A proposer therefore only names tokens (a distribution with
all its mass on them), which keeps rejection sampling exact whatever it guesses.
"""

from collections.abc import Sequence
from typing import Protocol

from backends.engine.request import Request


class Proposer(Protocol):
    """Guesses the tokens that follow what is known of a sequence."""

    name: str
    """Stands in `Request.draft_source`."""
    reach: int
    """How many times `speculation.num_tokens` it may guess ahead."""
    foresees: bool
    """Whether it was told the whole answer beforehand, and follows it."""
    costly: bool
    """Whether guessing itself takes time worth measuring before it is used widely."""

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """For each request at most its limit of tokens to follow `token_ids`; [] if it has none."""
        ...

    def forget(self, request: Request) -> None:
        """The request has ended; called once for every request, known or not."""
        ...
