"""Cascades: the backends that answer one after another until a judge accepts what one says.

A rung is the best usable backend behind one target. Left out are rungs that cannot take the
request, that are not ready, and, where the policy says so, where one above will probably do
better by far.
"""

import math
from collections.abc import Iterator

from policies.candidates import Candidates
from policies.conditions import Situation
from policies.model import Accept, BackendCard, Facts, Reason, Route
from policies.objective import NANO

TOKEN_JUDGES = ("answer", "logprob", "margin", "entropy")
"""Judges that read how likely the answer's tokens were."""
JUDGES = (*TOKEN_JUDGES, "consistency", "format")
BACKEND = "backend:"
"""How a judge begins that is a backend."""
MAX_SAMPLES = 16


def rungs(
    targets: list[str],
    accept: Accept,
    candidates: Candidates,
    situation: Situation,
    reasons: list[Reason],
) -> tuple[str, ...]:
    """Backends from the first to ask to the last; empty when none is ready."""
    found: dict[str, BackendCard] = {}
    for target in targets:
        for card in candidates.of(target)[:1]:
            if card.ready:
                found.setdefault(card.name, card)
            else:
                _leave_out(card.name, "is not ready", reasons)
    _skip(found, accept, situation.facts, reasons)
    if found:
        why = f"{' then '.join(found)}, until {accept.judge} says P(good) >= {accept.min:g}"
        reasons.append(Reason(subject="cascade", matched=True, why=why))
    return tuple(found)


def _skip(
    found: dict[str, BackendCard], accept: Accept, facts: Facts, reasons: list[Reason]
) -> None:
    """Leave out rungs that one above outdoes by the question alone, the last one first."""
    quality, rate = facts.features.quality, accept.skip_lambda_cost_usd
    above: list[tuple[float, float | None]] = []
    for name in reversed(list(found)):
        known, cost = quality.get(name), _cost_nano_usd(facts, name)
        if known is None:
            continue
        best = max((other for other, _ in above), default=-math.inf)
        if best - known >= accept.skip_gain:
            why = f"one above is predicted to be better by {best - known:.3f}"
            _leave_out(name, f"{why} >= skip_gain {accept.skip_gain:g}", reasons)
            del found[name]
        elif rate is not None and any(
            other - known >= rate * (dearer - cost) / NANO
            for other, dearer in above
            if cost is not None and dearer is not None
        ):
            why = "one above is predicted to be better by more than it costs more"
            _leave_out(name, f"{why}, at skip_lambda_cost_usd {rate:g}", reasons)
            del found[name]
        else:
            above.append((known, cost))


def _cost_nano_usd(facts: Facts, name: str) -> float | None:
    estimate = facts.estimates.get(name)
    return None if estimate is None else estimate.cost_nano_usd


def stands(p_good: float, gain: float | None, accept: Accept, cost_nano_usd: float = 0.0) -> bool:
    """Whether a judged answer is kept.

    Args:
        gain: how much likelier the best rung above is to answer well; None: not known.
        cost_nano_usd: that its answer will probably cost.
    """
    if p_good >= accept.min:
        return True
    return gain is not None and worth(gain, cost_nano_usd, accept) < accept.min_gain


def worth(gain: float, cost_nano_usd: float, accept: Accept) -> float:
    """What is left of a gain when its cost is taken off."""
    return gain - accept.lambda_cost_usd * cost_nano_usd / NANO


def _leave_out(name: str, why: str, reasons: list[Reason]) -> None:
    reasons.append(Reason(subject=f"rung {name}", matched=False, why=why))


def cascade_problems(action: Route) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of an action's `cascade` and `accept`."""
    if action.cascade is None:
        if action.accept is not None:
            yield "accept", "without effect without cascade; remove it"
        return
    if len(action.cascade) < 2:
        yield "cascade", f"{action.cascade!r}: name at least two tiers or backends"
    for place, target in enumerate(action.cascade):
        if target == "*":
            yield f"cascade[{place}]", "'*': name a tier or a backend"
        elif target in action.cascade[:place]:
            yield f"cascade[{place}]", f"{target!r}: stands before it already"
    yield from _accept_problems(action.accept or Accept())


def _accept_problems(accept: Accept) -> Iterator[tuple[str, str]]:
    judge = accept.judge
    if (judge not in JUDGES and not judge.removeprefix(BACKEND)) or (
        judge not in JUDGES and not judge.startswith(BACKEND)
    ):
        yield "accept.judge", f"{judge!r}: allowed: {', '.join(JUDGES)}, or {BACKEND}NAME"
    for name in ("min", "skip_gain"):
        value = getattr(accept, name)
        if not (math.isfinite(value) and 0 <= value <= 1):
            yield f"accept.{name}", f"{value!r}: a probability is 0 to 1"
    for name in ("lambda_cost_usd", "skip_lambda_cost_usd"):
        rate = getattr(accept, name)
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            yield f"accept.{name}", f"{rate!r}: quality a dollar is a number from 0 on"
    if not -1 <= accept.min_gain <= 1:
        yield "accept.min_gain", f"{accept.min_gain!r}: a difference of probabilities is -1 to 1"
    if not 2 <= accept.n <= MAX_SAMPLES:
        yield "accept.n", f"{accept.n!r}: 2 to {MAX_SAMPLES} answers"
