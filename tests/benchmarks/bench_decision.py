"""What a routing decision costs: the policy alone, and the whole way from request to candidates.

Correctness first: the decision must be the last rule's. Microseconds per call, medians and p99; of
the processor where the machine is not quiet (`--clock cpu`).
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backends.echo import EchoBackend
from backends.wire import ChatCompletionRequest, Message
from gateway.routing.classifier import Classifier
from gateway.routing.health import BackendRegistry
from gateway.routing.policy_book import PolicyBook
from gateway.routing.router import Router
from gateway.settings import BUILT_IN, RoutingSettings
from policies.evaluator import CompiledPolicy
from policies.model import (
    BackendCard,
    BudgetState,
    Facts,
    Policy,
    Range,
    RequestFeatures,
    Route,
    Rule,
    When,
)
from tests.benchmarks.environment import describe, write
from tests.benchmarks.load import WORDS as VOCABULARY

RULES = (1, 5, 20, 100)
REPEATS = 3000
WORDS = 390
"""Make 500 tokens by the gateway's estimate."""
RULES_OF_THE_WAY = 20
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
CONDITIONS = (
    'task = ["maths"], difficulty = {{ min = 0.5 }}, team = ["team-{i}"]',
    'tags = {{ feature = ["f-{i}"] }}, prompt_tokens = {{ max = 4000 }}',
    'quality = {{ backend = "nano", min = 1.1 }}, language = ["en"]',
    'load = {{ backend = "small", min = 0.9 }}, model = ["auto"]',
    'budget_left = {{ max = 0.1 }}, hours = {{ from = "00:00", to = "24:00" }}',
)
"""Of rules that do not match; the last rule is about the team that asks."""
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


Clock = Callable[[], float]


def figures_of(samples: list[float]) -> dict[str, float]:
    """p50 and p99 in microseconds."""
    samples.sort()
    return {
        "p50_us": round(statistics.median(samples) * 1e6, 2),
        "p99_us": round(samples[int(len(samples) * 0.99)] * 1e6, 2),
    }


def timed(call: Callable[[], Any], clock: Clock) -> list[float]:
    """Seconds of each of REPEATS calls."""
    found = []
    for _ in range(REPEATS):
        start = clock()
        call()
        found.append(clock() - start)
    return found


def measure_policy(rules: int, clock: Clock) -> dict[str, Any]:
    """Deciding when only the last of so many rules of three conditions matches."""
    policy = Policy(
        rules=[
            Rule(
                name=f"r{i}",
                when=When(
                    task=["maths", "code"],
                    difficulty=Range(min=0.5),
                    team=["search"] if i == rules - 1 else [f"team-{i}"],
                ),
                route="small",
                fallbacks=["nano"],
            )
            for i in range(rules)
        ],
        default=Route(deny="never reached"),
    )
    cards = {n: BackendCard(name=n, tier=n, model="m") for n in ("nano", "small")}
    features = RequestFeatures(task="maths", difficulty=0.7, prompt_tokens=40)
    facts = Facts(features=features, model="auto", team="search")
    compiled, budget = CompiledPolicy(policy), BudgetState()
    assert compiled.decide(facts, cards, budget, NOW, 0.5).rule == f"r{rules - 1}"
    return {
        "rules": rules,
        **figures_of(timed(lambda: compiled.decide(facts, cards, budget, NOW, 0.5), clock)),
    }


def policy_of(rules: int) -> str:
    """A policy file of so many rules, of which the last one decides."""
    text = []
    for i in range(rules - 1):
        when = CONDITIONS[i % len(CONDITIONS)].format(i=i)
        text.append(f'[[rules]]\nname = "r{i}"\nwhen = {{ {when} }}\nroute = "nano"\n')
    text.append('[[rules]]\nname = "last"\nwhen = { team = ["search"] }\nroute = "small"\n')
    return "\n".join([*text, '[default]\ndeny = "never reached"\n'])


async def measure_router(clock: Clock) -> dict[str, Any]:
    """Request struct → features → hot-reload check → decision; every prompt is new."""
    backends = {name: EchoBackend(name) for name in ("nano", "small")}
    registry = BackendRegistry(BUILT_IN, backends)
    for name in backends:
        await registry.probe(name)
    rng = random.Random(7)
    with TemporaryDirectory() as folder:
        (Path(folder) / "bench.toml").write_text(policy_of(RULES_OF_THE_WAY))
        book = PolicyBook(RoutingSettings(policy="bench", policy_dirs=[folder]))
        router = Router(BUILT_IN, Classifier.load(), book, registry)
        features, decisions, both, tokens = [], [], [], []
        for _ in range(REPEATS):
            text = " ".join(rng.choices(VOCABULARY, k=WORDS))
            request = ChatCompletionRequest(
                model="auto", messages=[Message(role="user", content=text)]
            )
            start = clock()
            facts = router.facts(request, team="search")
            read = clock()
            routed = await router.decide(facts, now=NOW, draw=0.5)
            done = clock()
            features.append(read - start)
            decisions.append(done - read)
            both.append(done - start)
            tokens.append(facts.features.prompt_tokens)
            assert routed.decision.rule == "last"
    return {
        "prompt_tokens": statistics.median(tokens),
        "rules": RULES_OF_THE_WAY,
        "features": figures_of(features),
        "decide": figures_of(decisions),
        **figures_of(both),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    chosen = parser.parse_args()
    clock = CLOCKS[chosen.clock]
    figures = describe("routing decisions, one at a time, in process")
    figures["results"] = {
        "clock": chosen.clock,
        "policy": [measure_policy(rules, clock) for rules in RULES],
        "request_to_candidates": asyncio.run(measure_router(clock)),
    }
    write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
