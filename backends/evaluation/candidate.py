"""What is measured: a name, a way to ask it questions, a way to count its bits. No torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, Protocol

from msgspec import Struct

from backends.evaluation.items import Item, Text

CONCURRENT: Final = 16
"""Questions under way at once: machine-seconds depend on it."""
TOP: Final = 5
"""Likeliest tokens at each place that are asked for."""
MachineTime = Literal["engine", "wall"]
"""engine: each answer's share of the engine's steps. wall: the server tells nothing, so the time
that all answers took, shared out by their tokens."""
Progress = Callable[[int], None]
"""Called with the number of answers that have come so far."""


class Certainty(Struct, frozen=True, kw_only=True):
    """How sure a model was of an answer's text, as a server tells it: the token that ended the
    answer is not counted."""

    logprob: float
    """Mean log-probability of its tokens."""
    margin: float
    """Least gap between a token's log-probability and that of the likeliest other one."""
    entropy: float
    """Mean over its places, nats; what is beyond the likeliest TOP tokens counts as one more."""


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came back for one question."""

    text: str = ""
    ended: bool = False
    """It ended by itself, not at the limit."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    machine_ns: int | None = None
    """None: not known."""
    mean_logprob: float | None = None
    """Over the answer's tokens; None: not known."""
    margin: float | None = None
    """Least gap between the chosen token's log-probability and the next one's."""
    certainty: Certainty | None = None
    error: str | None = None
    """Why there is no answer."""


class ModelFacts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a model without asking it anything."""

    source: str
    """bundled:NAME, a folder's name, or a URL."""
    parameters: int | None = None
    weight_bytes: int | None = None
    weights: str | None = None
    """Hash of the weights, as `backends.models.folder.revision` takes it."""
    quantization: str | None = None
    device: str | None = None


class NoBits(Exception):
    """Why the bits of a text cannot be counted here."""


class Candidate(Protocol):
    """One model under test. Its methods raise `BackendError` when it cannot answer at all."""

    name: str
    facts: ModelFacts
    machine_time: MachineTime

    def answer(self, items: Sequence[Item], progress: Progress) -> list[Answer]:
        """Answer every question greedily, `CONCURRENT` at a time; in the order of the items."""
        ...

    def text_bits(self, texts: Sequence[Text]) -> Mapping[str, float]:
        """Bits per byte of each part.

        Raises:
            NoBits: it does not tell the log-probabilities of a prompt.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
