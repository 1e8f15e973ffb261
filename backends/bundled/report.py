"""What an evaluation found, as one frozen record."""

import msgspec


class Score(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of how many."""

    count: int
    passed: int

    @property
    def rate(self) -> float:
        """The share that passed; 0 of nothing."""
        return self.passed / self.count if self.count else 0.0


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One exported model, measured; its int8 weights are dequantized to fp32 for it."""

    model: str
    parameters: int
    weight_bytes: int
    """Size of model.safetensors."""
    synthetic_test: Score
    """Exact answers on the corpus's synthetic test questions, greedy."""
    by_difficulty: dict[str, Score]
    by_category: dict[str, Score]
    facts_test: Score
    """Exact answers on everyday facts in wordings not trained on."""
    end_of_turn: Score
    """Answers that ended their turn within the token limit."""
    bits_per_byte: dict[str, float]
    """On texts held out by hash, in windows of 512 tokens."""
    examples: list[tuple[str, str]]
