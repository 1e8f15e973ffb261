"""Why nobody may answer.

The kind of model, a capability or the context stands in the way (400), the policy (403), or
somebody is away (503).
"""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from gateway.errors import (
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
    PolicyDenied,
    Unavailable,
)
from gateway.routing.policy_book import LoadedPolicy
from policies.candidates import NO_FIT
from policies.model import BackendCard, Decision, Facts

_DRAINED_RETRY_S = 30
_VERBS = {"chat/completions": "chat", "completions": "complete text", "embeddings": "embed"}


def refusal_of(
    facts: Facts,
    decision: Decision,
    loaded: LoadedPolicy,
    cards: Mapping[str, BackendCard],
    decided: Callable[[Facts], Decision],
) -> GatewayError:
    """Why nobody may answer: the one thing without which somebody could.

    Args:
        decided: what the policy says of other facts.
    """

    def answered(**changed: Any) -> bool:
        return bool(decided(replace(facts, **changed)).candidates)

    if decision.denied is not None:
        return PolicyDenied(decision.denied)
    if (wrong_kind := _wrong_kind(facts, cards)) is not None:
        return wrong_kind
    if facts.barred and answered(barred={}):
        away = "; ".join(f"{name} is {why}" for name, why in facts.barred.items())
        return Unavailable(f"Nobody else may answer: {away}.", retry_after_s=_DRAINED_RETRY_S)
    if facts.needs and answered(needs=frozenset()):
        missing = _missing(facts, cards)
        return InvalidRequest(
            f"No backend that may answer this accepts {missing!r}.", param=missing
        )
    if answered(prompt_tokens_bound=0, prompt_tokens_exact={}, max_tokens=None):
        return _too_long(facts, decision, cards)
    why = "; ".join(f"{r.subject}: {r.why}" for r in decision.reasons if _about_target(r.subject))
    return PolicyDenied(
        f"Policy {loaded.ref}, rule {decision.rule!r}, leaves no backend for model "
        f"{facts.model!r}" + (f": {why}." if why else ".")
    )


def _wrong_kind(facts: Facts, cards: Mapping[str, BackendCard]) -> InvalidRequest | None:
    """Of a chat to an encoder, or vectors of what makes none: who could."""
    names = cards if facts.allowed is None else facts.allowed
    if any(facts.endpoint in cards[name].endpoints for name in names if name in cards):
        return None
    able = [name for name, card in cards.items() if facts.endpoint in card.endpoints]
    there_are = f"these can: {', '.join(able)}" if able else "no backend here can"
    what = _VERBS.get(facts.endpoint, f"answer {facts.endpoint}")
    return InvalidRequest(f"The model {facts.model!r} cannot {what}; {there_are}.", param="model")


def _too_long(
    facts: Facts, decision: Decision, cards: Mapping[str, BackendCard]
) -> ContextLengthExceeded:
    names = too_small(decision)
    widest = max((cards[name].context_tokens or 0 for name in names), default=0)
    counts = [facts.prompt_tokens_exact.get(name) for name in names]
    uncounted = [name for name, count in zip(names, counts, strict=True) if count is None]
    known = [count for count in counts if count is not None]
    prompt = f"at most {facts.prompt_tokens_bound}" if uncounted or not known else f"{min(known)}"
    message = (
        f"The prompt ({prompt} tokens) and the answer ({facts.max_tokens or 1}) do not fit; the "
        f"widest context of the backends that may answer is {widest} tokens."
    )
    if uncounted and facts.features.prompt_tokens <= widest:
        whose = ", ".join(map(repr, uncounted))
        message += (
            f" Nobody counts the tokens of {whose}: with a `tokenizer` in the configuration, or "
            "/tokenize at the server, longer prompts are let in."
        )
    param = "messages" if facts.endpoint == "chat/completions" else "prompt"
    return ContextLengthExceeded(message, param=param)


def too_small(decision: Decision) -> list[str]:
    """Backends that were left out for their context alone."""
    return [
        reason.subject.removeprefix("backend ")
        for reason in decision.reasons
        if reason.why.startswith(NO_FIT)
    ]


def _about_target(subject: str) -> bool:
    return subject.startswith(("backend ", "target "))


def _missing(facts: Facts, cards: Mapping[str, BackendCard]) -> str:
    """A needed field that the best-equipped allowed backend lacks."""
    names = facts.allowed if facts.allowed is not None else cards.keys()
    lacking = [
        facts.needs - cards[name].accepts
        for name in names
        if facts.endpoint in cards[name].endpoints
    ]
    fewest = min(lacking, key=lambda fields: len(fields), default=facts.needs)
    return min(fewest or facts.needs)
