"""From a rule's targets to the backends to try, in order, with a reason for each one left out."""

from collections.abc import Mapping, Sequence

from policies.conditions import ANY, named
from policies.model import BackendCard, Facts, Reason

MAX_DETAIL = 64
"""Reasons for backends left out, at most: a request's row must not grow with the fleet."""


NO_FIT = "context "
"""How the reason of a backend begins that is left out for its context alone."""


class Candidates:
    """The backends that can answer one request, found target by target.

    A backend is left out when it does not serve the endpoint, is not what the requested model
    names, was taken out by an operator, lacks a capability that the request needs, or cannot hold
    prompt and answer.
    """

    def __init__(
        self, facts: Facts, cards: Mapping[str, BackendCard], max_tokens: int | None
    ) -> None:
        self._facts = facts
        self._cards = cards
        asked = [n for n in (facts.max_tokens, max_tokens) if n is not None]
        self._answer_tokens = max(1, min(asked)) if asked else 1
        self._verdicts: dict[str, str | None] = {}

    def of(self, target: str) -> list[BackendCard]:
        """The usable backends behind a tier, a backend or `*`: ready first, less loaded first."""
        usable = [card for card in named(target, self._cards) if self._problem(card) is None]
        if len(usable) > 1:
            # paid by the hour (no price of its own) counts as free: the hour is paid anyway
            price = target == ANY
            usable.sort(
                key=lambda c: (not c.ready, (c.usd_per_mtok or 0.0) if price else 0.0, c.load)
            )
        return usable

    def order(self, targets: Sequence[str]) -> tuple[str, ...]:
        """All usable backends behind the targets, each once; those not ready go last."""
        ready: dict[str, None] = {}
        waiting: dict[str, None] = {}
        for target in targets:
            for card in self.of(target):
                (ready if card.ready else waiting)[card.name] = None
        return (*ready, *waiting)

    def reasons(self, targets: Sequence[str]) -> list[Reason]:
        """Why backends behind the targets were left out, and which targets name none."""
        found = [
            Reason(subject=f"backend {name}", matched=False, why=why)
            for name, why in self._verdicts.items()
            if why is not None
        ]
        for target in dict.fromkeys(targets):
            if not named(target, self._cards):
                found.append(
                    Reason(subject=f"target {target}", matched=False, why="no such tier or backend")
                )
        return found[:MAX_DETAIL]

    def _problem(self, card: BackendCard) -> str | None:
        if card.name not in self._verdicts:
            self._verdicts[card.name] = self._judge(card)
        return self._verdicts[card.name]

    def _judge(self, card: BackendCard) -> str | None:
        facts = self._facts
        if facts.endpoint not in card.endpoints:
            return f"does not serve {facts.endpoint}"
        if facts.allowed is not None and card.name not in facts.allowed:
            return f"not what model {facts.model!r} names"
        if card.name in facts.barred:
            return facts.barred[card.name]
        if not facts.needs <= card.accepts:
            return f"does not accept {', '.join(sorted(facts.needs - card.accepts))}"
        if card.context_tokens is not None:
            exact = facts.prompt_tokens_exact.get(card.name)
            prompt = facts.prompt_tokens_bound if exact is None else exact
            if prompt + self._answer_tokens > card.context_tokens:
                count = f"at most {prompt}" if exact is None else str(exact)
                return (
                    f"{NO_FIT}{card.context_tokens} tokens; the prompt has {count}, "
                    f"the answer {self._answer_tokens}"
                )
        return None
