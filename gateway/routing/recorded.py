"""What the ledger keeps of a decision: what it was decided on, and what candidates promised."""

from collections.abc import Mapping

from gateway.ledger.records import CandidateRecord, DecidedOn
from gateway.routing.second_look import Looked
from policies.model import BackendCard, BudgetState, Estimate, Facts


def candidate_record(name: str, facts: Facts, estimate: Estimate) -> CandidateRecord:
    """A backend that may answer, with what is expected of it."""
    return CandidateRecord(
        backend=name,
        cost_nano_usd=estimate.cost_nano_usd,
        quality=facts.features.quality.get(name),
        latency_ms=None if estimate.latency_s is None else estimate.latency_s * 1e3,
    )


def decided_on(
    facts: Facts,
    cards: Mapping[str, BackendCard],
    budget: BudgetState,
    explored: str | None,
    looked: Looked | None,
) -> DecidedOn:
    """What the policy was told, beside the columns that a request's row has anyway."""
    return DecidedOn(
        needs=tuple(facts.needs),
        wants=tuple(facts.features.wants),
        max_tokens=facts.max_tokens,
        prompt_tokens_bound=facts.prompt_tokens_bound,
        prompt_tokens_exact=facts.prompt_tokens_exact,
        allowed=_could(facts, cards),
        budget_left=budget.left,
        quality=facts.features.quality,
        loads={card.name: card.load for card in cards.values()},
        down=tuple(card.name for card in cards.values() if not card.ready),
        warm=None if facts.warm is None else (facts.warm.backend, facts.warm.tokens),
        explored=explored,
        second_look=None if looked is None else looked.result,
    )


def _could(facts: Facts, cards: Mapping[str, BackendCard]) -> tuple[str, ...] | None:
    """Backends that the model named and no operator had taken out; None: all."""
    if not facts.barred:
        return None if facts.allowed is None else tuple(facts.allowed)
    allowed = cards if facts.allowed is None else facts.allowed
    return tuple(name for name in allowed if name not in facts.barred)
