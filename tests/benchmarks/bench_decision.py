"""What a routing decision costs: the policy alone, and the whole way from request to candidates.

Correctness first: the decision must be the last rule's. Microseconds per call, medians and p99.
"""

import argparse
import asyncio
import json
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

RULES = (1, 5, 20, 100)
REPEATS = 3000
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


def figures_of(samples: list[float]) -> dict[str, float]:
    """p50 and p99 in microseconds."""
    samples.sort()
    return {
        "p50_us": round(statistics.median(samples) * 1e6, 2),
        "p99_us": round(samples[int(len(samples) * 0.99)] * 1e6, 2),
    }


def timed(call: Callable[[], Any]) -> list[float]:
    """Seconds of each of REPEATS calls."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def measure_policy(rules: int) -> dict[str, Any]:
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
        **figures_of(timed(lambda: compiled.decide(facts, cards, budget, NOW, 0.5))),
    }


async def measure_router() -> dict[str, Any]:
    """Request struct → features → hot-reload check → decision; every prompt is new."""
    backends = {name: EchoBackend(name) for name in ("nano", "small")}
    registry = BackendRegistry(BUILT_IN, backends)
    for name in backends:
        await registry.probe(name)
    with TemporaryDirectory() as folder:
        book = PolicyBook(RoutingSettings(policy_dirs=[folder]))
        router = Router(BUILT_IN, Classifier.load(), book, registry)
        samples = []
        for index in range(REPEATS):
            text = f"Question {index}: how do tides work, and why are there two a day? " * 6
            request = ChatCompletionRequest(
                model="auto", messages=[Message(role="user", content=text)]
            )
            start = time.perf_counter()
            routed = await router.decide(router.facts(request), now=NOW, draw=0.5)
            samples.append(time.perf_counter() - start)
            assert routed.decision.candidates
    return {"prompt_tokens": 100, "policy": "default", **figures_of(samples)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    figures = describe("routing decisions, one at a time, in process")
    figures["results"] = {
        "policy": [measure_policy(rules) for rules in RULES],
        "request_to_candidates": asyncio.run(measure_router()),
    }
    write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
