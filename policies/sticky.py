"""Whether a conversation stays where its prefix is warm.

Moving throws away what a backend has in its prefix cache, and may end in a smaller window. So a
chat moves only if that pays: in predicted quality, or in cost, where the cached prefix counts.
Without a prediction nothing speaks for moving.
"""

from collections.abc import Mapping

from policies.model import BackendCard, Facts, Reason, Route, Sticky


def settle(
    sticky: Sticky,
    action: Route,
    facts: Facts,
    order: tuple[str, ...],
    cards: Mapping[str, BackendCard],
) -> tuple[tuple[str, ...], Reason | None]:
    """The candidates, with the conversation's last backend in front where moving does not pay.

    A route says whom the operator wants; an objective has weighed quality and cost itself, so there
    only the window counts. Splits and cascades know better than to stay.
    """
    warm = facts.warm
    if warm is None or (action.route is None and action.objective is None):
        return order, None
    if warm.backend == order[0]:
        return order, Reason(subject="sticky", matched=True, why=f"{warm.backend} is warm")
    if warm.backend not in order or not cards[warm.backend].ready:
        why = f"{warm.backend} was warm, but is no candidate that is ready"
        return order, Reason(subject="sticky", matched=False, why=why)
    other = order[0]
    pays, why = _pays(sticky, action, facts, cards[warm.backend], cards[other])
    if not pays:
        order = (warm.backend, *(name for name in order if name != warm.backend))
    said = f"moves to {other}" if pays else f"stays with {warm.backend}"
    return order, Reason(subject="sticky", matched=not pays, why=f"{said}: {why}")


def _pays(
    sticky: Sticky, action: Route, facts: Facts, warm: BackendCard, other: BackendCard
) -> tuple[bool, str]:
    """Whether moving from the warm backend to the other one does, and why."""
    need = facts.features.prompt_tokens * sticky.headroom
    if window(other) < window(warm) and window(other) < need:
        return False, f"{other.name} has a smaller window than {warm.name}, and too small a one"
    if action.objective is not None:
        return True, f"{other.name} is worth more than {warm.name}, whose warm prefix was counted"
    gain = _difference(*(facts.features.quality.get(card.name) for card in (other, warm)))
    costs = [facts.estimates.get(card.name) for card in (warm, other)]
    saved = _difference(*(cost.cost_nano_usd if cost else None for cost in costs))
    words = f"{other.name} would gain {gain:+.3f} of quality and save ${saved / 1e9:.3g}"
    return gain >= sticky.min_gain or (saved > 0 and gain > -sticky.min_gain), words


def window(card: BackendCard) -> float:
    """Tokens; a context that nobody knows holds everything."""
    return float("inf") if card.context_tokens is None else card.context_tokens


def _difference(more: float | None, less: float | None) -> float:
    return 0.0 if more is None or less is None else more - less
