"""A file of prompts through policies, side by side; nothing is asked."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backends.wire import ChatCompletionRequest, Message
from gateway.ledger.money import usd_text
from gateway.routing.policy_book import LoadedPolicy
from gateway.routing.router import Router, sticky_draw
from policies.model import BackendCard, BudgetState


class PromptsError(ValueError):
    """A file of prompts that cannot be used; the message names file and line."""


class _Line(Struct, kw_only=True):
    """One line of JSON Lines; other keys are ignored."""

    prompt: str | None = None
    messages: list[Message] | None = None
    scores: dict[str, float] = msgspec.field(default_factory=dict)
    max_tokens: int | None = None


class Prompt(Struct, frozen=True):
    """One request, and how well backends are known to answer it."""

    request: ChatCompletionRequest
    scores: dict[str, float]


def read_prompts(path: Path) -> list[Prompt]:
    """One prompt a line, or JSON objects. Raises PromptsError."""
    prompts = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            prompts.append(_prompt(line, f"{path}:{number}"))
    if not prompts:
        raise PromptsError(f"{path}: no prompts")
    return prompts


def _prompt(line: str, place: str) -> Prompt:
    found = _Line(prompt=line)
    if line.lstrip().startswith("{"):
        try:
            found = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise PromptsError(f"{place}: {error}") from None
    if found.messages is None and found.prompt is None:
        raise PromptsError(f"{place}: neither prompt nor messages")
    messages = found.messages or [Message(role="user", content=found.prompt)]
    request = ChatCompletionRequest(model="auto", messages=messages, max_tokens=found.max_tokens)
    return Prompt(request, found.scores)


def simulate_all(
    prompts: list[Prompt],
    policies: list[LoadedPolicy],
    router: Router,
    cards: Mapping[str, BackendCard],
) -> dict[str, Any]:
    """The report of `headgate policy simulate`: cost, quality, latency and shares by policy."""
    told = []
    for prompt in prompts:
        facts = router.facts(prompt.request)
        told.append((replace(facts, estimates=router.estimates(facts)), prompt))
    return {
        "prompts": len(prompts),
        "policies": [_simulate(loaded, told, cards) for loaded in policies],
    }


def _simulate(
    loaded: LoadedPolicy, told: list[Any], cards: Mapping[str, BackendCard]
) -> dict[str, Any]:
    now = datetime.now(UTC)
    shares: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    nano, denied, unanswered = 0, 0, 0
    predicted: list[float | None] = []
    measured: list[float | None] = []
    latency: list[float | None] = []
    for index, (facts, prompt) in enumerate(told):
        budget = BudgetState(day_spent_usd=nano / 1e9, day_requests=index)
        draw = sticky_draw(json.dumps([index, facts.features.prompt_tokens]))
        decision = loaded.compiled.decide(facts, cards, budget, now, draw)
        rules[decision.rule] += 1
        if not decision.candidates:
            denied += decision.denied is not None
            unanswered += decision.denied is None
            continue
        winner = decision.candidates[0]
        shares[winner] += 1
        estimate = facts.estimates[winner]
        nano += estimate.cost_nano_usd or 0
        latency.append(estimate.latency_s)
        predicted.append(facts.features.quality.get(winner))
        measured.append(prompt.scores.get(winner))
    return {
        "policy": loaded.ref,
        "cost_usd": usd_text(nano),
        "predicted_quality": _mean(predicted),
        "measured_quality": _mean(measured),
        "mean_latency_s": _mean(latency),
        "shares": {name: round(count / len(told), 6) for name, count in shares.most_common()},
        "rules": dict(rules),
        "denied": denied,
        "unanswered": unanswered,
    }


def _mean(values: list[float | None]) -> float | None:
    """Over what is known, if all of it is."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 6) if known and len(known) == len(values) else None
