"""A file of prompts through policies, side by side; nothing is asked."""

import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from backends.wire import ChatCompletionRequest, Message
from gateway.dispatch.cascade_costs import JUDGE_TOKENS, judging_backend
from gateway.learning.spreadsheets import is_spreadsheet, outcome_rows
from gateway.ledger.money import usd_text
from gateway.routing.answer_checks import checks_of
from gateway.routing.climbs import SOURCES, Climbed, Told, climb
from gateway.routing.judges import Signals
from gateway.routing.policy_book import LoadedPolicy
from gateway.routing.router import Router, sticky_draw
from policies.cascade import TOKEN_JUDGES, worth
from policies.model import BackendCard, BudgetState, Decision, Facts


class PromptsError(ValueError):
    """A file of prompts that cannot be used; the message names file and line."""


class _Line(Struct, kw_only=True):
    """One line of JSON Lines; other keys are ignored."""

    prompt: str | None = None
    messages: list[Message] | None = None
    scores: dict[str, float] = msgspec.field(default_factory=dict)
    max_tokens: int | None = None
    logprob: dict[str, float] = msgspec.field(default_factory=dict)
    margin: dict[str, float] = msgspec.field(default_factory=dict)
    entropy: dict[str, float] = msgspec.field(default_factory=dict)
    completion_tokens: dict[str, float] = msgspec.field(default_factory=dict)
    answer_text: dict[str, str] = msgspec.field(default_factory=dict)
    judged: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)


class Prompt(Struct, frozen=True):
    """One request, and what is known of backends' answers to it."""

    request: ChatCompletionRequest
    scores: dict[str, float]
    signals: dict[str, Signals] = msgspec.field(default_factory=dict)
    """By backend: how sure it was of its answer."""
    judged: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    """By judge, by backend: what other judges said."""

    def told_to(self, judge: str, backend: str) -> Signals | float | None:
        """What a judge has to go by; None: nothing is known."""
        if judge in TOKEN_JUDGES:
            return self.signals.get(backend)
        return self.judged.get(judge, {}).get(backend)


def read_prompts(path: Path) -> list[Prompt]:
    """One prompt a line, JSON objects, or a spreadsheet's rows. Raises PromptsError."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise PromptsError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    text = data.decode("utf-8-sig", errors="replace")
    if is_spreadsheet(path):
        prompts = _of_rows(path, text)
    else:
        prompts = [
            _prompt(line, f"{path}:{number}")
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip()
        ]
    if not prompts:
        raise PromptsError(f"{path}: no prompts")
    return prompts


def _of_rows(path: Path, text: str) -> list[Prompt]:
    try:
        rows = outcome_rows(text, scored=False)
        return [
            _asked(msgspec.convert(row, _Line), f"{path}: row {number}") for number, row in rows
        ]
    except ValueError as error:
        raise PromptsError(f"{path}: {error}") from None


def _prompt(line: str, place: str) -> Prompt:
    found = _Line(prompt=line)
    if line.lstrip().startswith("{"):
        try:
            found = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise PromptsError(f"{place}: {error}") from None
    return _asked(found, place)


def _asked(found: _Line, place: str) -> Prompt:
    if found.messages is None and found.prompt is None:
        raise PromptsError(f"{place}: neither prompt nor messages")
    messages = found.messages or [Message(role="user", content=found.prompt)]
    request = ChatCompletionRequest(model="auto", messages=messages, max_tokens=found.max_tokens)
    question = next((m.text() for m in reversed(messages) if m.role == "user" and m.text()), "")
    return Prompt(request, found.scores, _signals(found, question), found.judged)


def _signals(line: _Line, question: str) -> dict[str, Signals]:
    return {
        name: Signals(
            logprob=logprob,
            margin=line.margin.get(name, 0.0),
            entropy=line.entropy.get(name, 0.0),
            # the token that ends an answer is counted, but not judged
            tokens=max(int(line.completion_tokens.get(name, 2)) - 1, 1),
            checks=checks_of(question, line.answer_text.get(name, "")),
        )
        for name, logprob in line.logprob.items()
    }


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
        "policies": [_simulate(loaded, told, cards, router) for loaded in policies],
    }


def _simulate(
    loaded: LoadedPolicy, told: list[Any], cards: Mapping[str, BackendCard], router: Router
) -> dict[str, Any]:
    now = datetime.now(UTC)
    shares: defaultdict[str, float] = defaultdict(float)
    rules: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    nano, denied, unanswered, asked = 0.0, 0, 0, 0.0
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
        if decision.rungs:
            climbed = expect(facts, decision, prompt, router)
            sources[SOURCES[int(climbed.source[0])]] += 1
            stands = {name: float(share[0]) for name, share in climbed.stands.items() if share[0]}
            nano += float(climbed.cost[0])
            asked += float(climbed.asked[0])
            latency.append(_known(climbed.seconds))
            predicted.append(_known(climbed.quality))
        else:
            winner = decision.candidates[0]
            stands, asked = {winner: 1.0}, asked + 1
            nano += facts.estimates[winner].cost_nano_usd or 0
            latency.append(facts.estimates[winner].latency_s)
            predicted.append(facts.features.quality.get(winner))
        for name, share in stands.items():
            shares[name] += share
        known = all(name in prompt.scores for name in stands)
        measured.append(
            sum(share * prompt.scores[name] for name, share in stands.items()) if known else None
        )
    served = len(told) - denied - unanswered
    return {
        "policy": loaded.ref,
        "cost_usd": usd_text(round(nano)),
        "predicted_quality": _mean(predicted),
        "measured_quality": _mean(measured),
        "mean_latency_s": _mean(latency),
        "shares": {
            name: round(share / len(told), 6)
            for name, share in sorted(shares.items(), key=lambda one: -one[1])
        },
        "rules": dict(rules),
        "rungs": round(asked / served, 4) if served else None,
        "verdicts": dict(sources),
        "denied": denied,
        "unanswered": unanswered,
    }


def expect(facts: Facts, decision: Decision, prompt: Prompt, router: Router) -> Climbed:
    """What a cascade does on one request; N is 1."""
    assert decision.accept is not None
    accept, judges, quality = decision.accept, router.judges, facts.features.quality
    estimates = facts.estimates
    p_good, gain = {}, {}

    def left(gain: tuple[str, float]) -> float:
        return worth(gain[1], estimates[gain[0]].cost_nano_usd or 0, accept)

    for place, name in enumerate(decision.rungs[:-1]):
        signal = prompt.told_to(accept.judge, name)
        if signal is not None:
            above = decision.rungs[place + 1 :]
            good, gains = judges.weigh(name, accept.judge, signal, quality, above)
            p_good[name] = _one(good)
            gain[name] = _one(max(map(left, gains.items()), default=None))
    look = judging_backend(accept)
    prompt_tokens = facts.features.prompt_tokens + JUDGE_TOKENS
    told = Told(
        quality={name: _one(quality.get(name)) for name in decision.rungs},
        costs={name: _one(estimates[name].cost_nano_usd or 0) for name in decision.rungs},
        seconds={name: _one(estimates[name].latency_s) for name in decision.rungs},
        looks={}
        if look is None
        else {
            name: _one(
                router.forecasts.price(look, prompt_tokens + round(estimates[name].answer_tokens))
            )
            for name in decision.rungs
        },
        p_good=p_good,
        gain=gain,
    )
    return climb(decision.rungs, accept, told, judges)


def _one(value: float | None) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value])


def _known(values: NDArray[np.float64]) -> float | None:
    return None if np.isnan(values[0]) else float(values[0])


def _mean(values: list[float | None]) -> float | None:
    """Over what is known, if all of it is."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 6) if known and len(known) == len(values) else None
