"""Deciding: policy, facts, cards, budget, time and one draw in; decision and reasons out.

Pure and total: no I/O, no clock, no randomness, and no input of the right types makes it raise.
`CompiledPolicy` turns the conditions into closures once, so that a request costs microseconds;
`decide()` does both for a plain `Policy`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from msgspec.structs import replace

from policies.candidates import Candidates
from policies.cascade import rungs as rungs_of
from policies.conditions import ANY, Check, Situation, compile_when
from policies.model import (
    Accept,
    BackendCard,
    BudgetState,
    Decision,
    Facts,
    Policy,
    Reason,
    Route,
    Sticky,
)
from policies.objective import rank
from policies.sticky import settle
from policies.uncertainty import uses_quality

Cards = Mapping[str, BackendCard] | Sequence[BackendCard]
PINNED = "pin"
"""The rule of requests that a pinned backend answers: reports show them apart."""


def decide(
    policy: "Policy | CompiledPolicy",
    facts: Facts,
    cards: Cards,
    budget: BudgetState,
    now: datetime,
    draw: float,
) -> Decision:
    """Which backends may answer, in order, and why.

    Args:
        policy: compiled by the caller if it is asked more than once.
        cards: what is known of each backend, by name or as a list.
        now: aware; a time without a zone counts as UTC.
        draw: in [0, 1), a hash of the sticky id; chooses the arm of a split.

    Returns:
        A decision whose `candidates` are empty when `denied` is set or when no backend is left;
        then `reasons` says why each was left out.
    """
    compiled = policy if isinstance(policy, CompiledPolicy) else CompiledPolicy(policy)
    return compiled.decide(facts, cards, budget, now, draw)


class CompiledPolicy:
    """A policy whose conditions are closures."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        actions = (*policy.rules, policy.default)
        self.uses_estimates = any(map(_weighs_cost, actions))
        """Whether decisions depend on `facts.estimates`."""
        self.uses_warmth = policy.sticky is not None or self.uses_estimates
        """Whether they depend on `facts.warm`; if that is known, on the estimates, too."""
        self.uses_quality = uses_quality(policy)
        """Whether they depend on predicted qualities."""
        self._rules: list[tuple[str, str, Route, list[Check]]] = [
            (rule.name, f"rule {rule.name}", rule, compile_when(rule.when)) for rule in policy.rules
        ]

    def decide(
        self, facts: Facts, cards: Cards, budget: BudgetState, now: datetime, draw: float
    ) -> Decision:
        """See `decide`."""
        by_name = cards if isinstance(cards, Mapping) else {card.name: card for card in cards}
        situation = Situation(facts, by_name, budget, now)
        reasons: list[Reason] = []
        for name, subject, action, checks in self._rules:
            holds, why = _ask(checks, situation)
            reasons.append(Reason(subject=subject, matched=holds, why=why))
            if holds:
                return _act(name, action, situation, draw, reasons, self.policy.sticky)
        reasons.append(Reason(subject="default", matched=True, why="no rule before it matched"))
        return _act("default", self.policy.default, situation, draw, reasons, self.policy.sticky)

    def verdicts(
        self, facts: Facts, cards: Cards, budget: BudgetState, now: datetime
    ) -> list[Reason]:
        """What every rule says of a request, also those behind the one that decides."""
        by_name = cards if isinstance(cards, Mapping) else {card.name: card for card in cards}
        situation = Situation(facts, by_name, budget, now)
        found = []
        for _, subject, _, checks in self._rules:
            holds, why = _ask(checks, situation)
            found.append(Reason(subject=subject, matched=holds, why=why))
        return found


def _ask(checks: Sequence[Check], situation: Situation) -> tuple[bool, str]:
    """Whether all hold; the words of those that fail, or of all when none does."""
    yes: list[str] = []
    no: list[str] = []
    for check in checks:
        holds, why = check(situation)
        (yes if holds else no).append(why)
    if no:
        return False, "; ".join(no)
    return True, "; ".join(yes) or "has no conditions"


def _act(
    name: str,
    action: Route,
    situation: Situation,
    draw: float,
    reasons: list[Reason],
    sticky: Sticky | None,
) -> Decision:
    facts, cards = situation.facts, situation.cards
    if action.deny is not None:
        return Decision(
            rule=name, candidates=(), denied=action.deny, draw=draw, reasons=tuple(reasons)
        )
    candidates = Candidates(facts, cards, action.max_tokens)
    accept = action.accept or Accept()
    rungs: tuple[str, ...] = ()
    pinned = f"backend:{facts.pinned}"
    if facts.pinned is not None and candidates.of(pinned):
        why = f"{facts.pinned} is pinned by an operator"
        reasons.append(Reason(subject="pin", matched=True, why=why))
        name, targets, probability, all_targets = PINNED, [pinned], 1.0, [pinned]
    elif action.objective is not None:
        ranking = rank(action.objective, candidates, situation)
        reasons.append(ranking.reason)
        probability, all_targets = 1.0, list(action.objective.among)
        targets = [*(f"backend:{name}" for name in ranking.order), *action.fallbacks]
    elif action.cascade is not None:
        rungs = rungs_of(action.cascade, accept, candidates, situation, reasons)
        probability, all_targets = 1.0, action.cascade.copy()
        ladder = [*(f"backend:{name}" for name in rungs), action.cascade[-1]]
        targets = [*(ladder if rungs else action.cascade), *action.fallbacks]
    else:
        target, probability, all_targets = _choose(action, candidates, draw, reasons)
        targets = [target, *action.fallbacks]
    order = candidates.order(targets)
    if not order and facts.endpoint == "embeddings":
        # a policy that routes text only does not stand in the way of embeddings
        all_targets.append(ANY)
        order = candidates.order([ANY])
    if sticky is not None and order and name != PINNED:
        order, reason = settle(sticky, action, facts, order, cards)
        reasons += [] if reason is None else [reason]
    reasons.extend(candidates.reasons([*all_targets, *action.fallbacks]))
    return Decision(
        rule=name,
        candidates=order,
        rungs=rungs if len(rungs) > 1 else (),
        accept=accept if len(rungs) > 1 else None,
        max_tokens=action.max_tokens,
        cache=action.cache,
        shadow=_shadow(action, facts, cards),
        retries=action.retries,
        hedge=action.hedge,
        restart=action.restart,
        probability=probability,
        draw=draw,
        reasons=tuple(reasons),
    )


def _choose(
    action: Route, candidates: Candidates, draw: float, reasons: list[Reason]
) -> tuple[str, float, list[str]]:
    """The first target, its probability, and all targets that were looked at."""
    if action.route is not None:
        return action.route, 1.0, [action.route]
    weights = {target: weight for target, weight in (action.split or {}).items() if weight > 0}
    if not weights:
        return ANY, 1.0, [ANY]
    usable = {target: candidates.of(target) for target in weights}
    # an arm that nobody can answer passes its share on; arms that are merely not ready yet
    # count only when no arm is ready
    arms = [t for t, cards in usable.items() if cards and cards[0].ready]
    arms = arms or [t for t, cards in usable.items() if cards] or list(weights)
    total = sum(weights[arm] for arm in arms)
    point, chosen = draw * total, arms[-1]
    for arm in arms:
        point -= weights[arm]
        if point < 0:
            chosen = arm
            break
    share = weights[chosen] / total
    why = f"draw {draw:.4f} chose {chosen}, share {share:.3g}"
    left_out = [target for target in weights if target not in arms]
    if left_out:
        why += f"; {', '.join(left_out)} cannot answer now"
    reasons.append(Reason(subject="split", matched=True, why=why))
    return chosen, share, list(weights)


def _shadow(action: Route, facts: Facts, cards: Mapping[str, BackendCard]) -> str | None:
    """The backend that gets a copy: the operator's choice, whatever model was asked for."""
    if action.shadow is None:
        return None
    unlimited = facts if facts.allowed is None else replace(facts, allowed=None)
    order = Candidates(unlimited, cards, action.max_tokens).order([action.shadow])
    return order[0] if order else None


def _weighs_cost(action: Route) -> bool:
    """Whether expected costs have a say in what an action does."""
    return action.objective is not None or (
        action.accept is not None
        and (action.accept.lambda_cost_usd > 0 or action.accept.skip_lambda_cost_usd is not None)
    )
