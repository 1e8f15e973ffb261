"""PlanError: what was asked cannot hold; the message says what cannot, and what would."""


class PlanError(Exception):
    """Bad input to the planner, or a wish that no hardware fulfils.

    PlanError
    └── TooLarge  weights and the longest request do not fit
    """


class TooLarge(PlanError):
    """How many `times` the memory that is there would be needed."""

    def __init__(self, words: str, times: float) -> None:
        super().__init__(words)
        self.times = times
