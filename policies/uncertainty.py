"""Would another opinion of the predicted qualities change what a policy decides? Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from policies.model import Decision, Policy, Route


def uses_quality(policy: Policy) -> bool:
    """Whether predicted qualities (difficulty is one, too) have a say in anything."""
    if policy.sticky is not None:
        return True
    return any(
        rule.when.quality is not None or rule.when.difficulty is not None for rule in policy.rules
    ) or any(_weighs_quality(action) for action in (*policy.rules, policy.default))


def _weighs_quality(action: Route) -> bool:
    if action.objective is not None:
        return True
    accept = action.accept
    return accept is not None and (
        accept.skip_gain < 1.0 or accept.skip_lambda_cost_usd is not None
    )


def moved(
    quality: Mapping[str, float], shift: Mapping[str, float], order: Sequence[str]
) -> Iterator[dict[str, float]]:
    """Other qualities that are as likely: all better, all worse; the cheap better and the dear
    worse, and the reverse.

    Args:
        shift: how far a prediction is usually off, by backend; others stay.
        order: of the backends in `shift`, the cheapest first.
    """
    last = max(len(order) - 1, 1)
    tilt = {name: 1.0 - 2.0 * place / last for place, name in enumerate(order)}
    for sign in (1.0, -1.0):
        for weight in (dict.fromkeys(order, 1.0), tilt):
            changed = {
                name: min(1.0, max(0.0, quality[name] + sign * weight[name] * shift[name]))
                for name in order
                if name in quality
            }
            yield dict(quality) | changed


def depends(
    decision: Decision,
    again: Callable[[dict[str, float]], Decision],
    others: Iterator[dict[str, float]],
) -> bool:
    """Whether one of the other qualities leads to another backend, or to other rungs."""
    for quality in others:
        other = again(quality)
        if other.candidates[:1] != decision.candidates[:1] or other.rungs != decision.rungs:
            return True
    return False
