"""Chance in place of the policy, now and then: what replays need to judge another policy."""

from msgspec.structs import replace

from policies.model import Decision

EXPLORED = "explore"
"""The rule of requests for which chance took the place of the policy: reports show them apart."""


def left_to_chance(
    decision: Decision, luck: float | None, share: float
) -> tuple[Decision, str | None]:
    """A decision with candidates as it stands with exploration, and the rule that it displaced.

    Args:
        luck: in [0, 1), new for each request; below `share` chance decides. None: never.
    """
    if luck is not None and luck < share:
        return explore(decision, luck / share, share), decision.rule
    return (not_explored(decision, share) if share else decision), None


def explore(decision: Decision, luck: float, share: float) -> Decision:
    """One of the candidates by chance, each alike, in place of the policy's choice."""
    names = decision.candidates
    chosen = names[min(int(luck * len(names)), len(names) - 1)]
    return replace(
        decision,
        rule=EXPLORED,
        rungs=(),
        accept=None,
        candidates=(chosen, *(name for name in names if name != chosen)),
        probability=_probability(decision, chosen, share),
    )


def not_explored(decision: Decision, share: float) -> Decision:
    """The policy's choice, with the probability that it had beside the explored ones."""
    chosen = decision.candidates[0]
    return replace(decision, probability=_probability(decision, chosen, share))


def _probability(decision: Decision, chosen: str, share: float) -> float:
    """With which `chosen` comes first, by the policy or by chance."""
    own = decision.probability if chosen == decision.candidates[0] else 0.0
    return (1 - share) * own + share / len(decision.candidates)
