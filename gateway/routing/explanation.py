"""A decision in full, as plain data: what `/route/explain` and `headgate policy explain` show."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from gateway.cache.semantic import Encoding
from gateway.errors import GatewayError
from gateway.ledger.money import usd_text
from gateway.ledger.records import DecidedOn
from gateway.routing.policy_book import LoadedPolicy
from policies.model import BackendCard, BudgetState, Decision, Estimate, Facts, Reason


class Routed(Struct, frozen=True, kw_only=True):
    """A decision, the policy that took it, and the error to raise if nobody may answer."""

    decision: Decision
    loaded_policy: LoadedPolicy
    facts: Facts
    """As decided on: with the backends that the model names and the exact counts."""
    decided_on: DecidedOn
    """For the ledger."""
    refusal: GatewayError | None = None
    encoding: Encoding | None = None
    """Of the request's text, where a second look has asked for it: somebody has to pay."""
    second_look: str | None = None
    """used, late, failed, or why there was none; None: the policy asks for no quality."""


def explanation(
    routed: Routed, cards: Mapping[str, BackendCard], budget: BudgetState, now: datetime
) -> dict[str, Any]:
    """Every rule's verdict, features, candidates, winner."""
    decision, facts, loaded = routed.decision, routed.facts, routed.loaded_policy
    features = asdict(facts.features)
    features["wants"] = sorted(facts.features.wants)
    rules = [r for r in decision.reasons if r.subject.startswith(("rule ", "default"))]
    asked = {reason.subject for reason in rules}
    behind = loaded.compiled.verdicts(facts, cards, budget, now)
    return {
        "model": facts.model,
        "policy": loaded.ref,
        "policy_sha256": loaded.sha256,
        "rule": decision.rule,
        "winner": decision.candidates[0] if decision.candidates else None,
        "candidates": [_candidate(cards[name], facts) for name in decision.candidates],
        "rungs": list(decision.rungs),
        "accept": None if decision.accept is None else asdict(decision.accept),
        "denied": decision.denied,
        "refusal": None
        if routed.refusal is None
        else {"status": routed.refusal.status, **routed.refusal.body()["error"]},
        "max_tokens": decision.max_tokens,
        "cache": decision.cache,
        "shadow": decision.shadow,
        "probability": decision.probability,
        "draw": decision.draw,
        "budget_left": budget.left,
        "features": features,
        "second_look": routed.second_look,
        "facts": {
            "team": facts.team,
            "key": facts.key,
            "user": facts.user,
            "tags": facts.tags,
            "needs": sorted(facts.needs),
            "max_tokens": facts.max_tokens,
            "prompt_tokens_bound": facts.prompt_tokens_bound,
            "prompt_tokens_exact": facts.prompt_tokens_exact,
            "allowed": None if facts.allowed is None else sorted(facts.allowed),
            "endpoint": facts.endpoint,
            "warm": None if facts.warm is None else asdict(facts.warm),
            "pinned": facts.pinned,
            "barred": facts.barred,
        },
        "rules": [_reason(reason) for reason in rules],
        "not_reached": [_reason(reason) for reason in behind if reason.subject not in asked],
        "targets": [_reason(reason) for reason in decision.reasons if reason not in rules],
    }


def expectation(estimate: Estimate | None) -> dict[str, Any]:
    """What one answer will probably take."""
    if estimate is None:
        return {"cost_usd": None, "latency_s": None, "answer_tokens": None}
    cost = estimate.cost_nano_usd
    tokens = (estimate.answer_tokens_low, estimate.answer_tokens, estimate.answer_tokens_high)
    return {
        "cost_usd": None if cost is None else usd_text(cost),
        "latency_s": estimate.latency_s,
        "answer_tokens": dict(zip(("low", "median", "high"), map(round, tokens), strict=True)),
    }


def _reason(reason: Reason) -> dict[str, Any]:
    return {"subject": reason.subject, "matched": reason.matched, "why": reason.why}


def _candidate(card: BackendCard, facts: Facts) -> dict[str, Any]:
    return {
        "backend": card.name,
        "tier": card.tier,
        "model": card.model,
        "machine": card.machine,
        "ready": card.ready,
        "load": card.load,
        "usd_per_mtok": card.usd_per_mtok,
        "quality": facts.features.quality.get(card.name),
    }
