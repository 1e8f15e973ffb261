"""PlanError: what was asked cannot hold; the message says what cannot, and what would."""


class PlanError(Exception):
    """Bad input to the planner, or a wish that no hardware fulfils."""
