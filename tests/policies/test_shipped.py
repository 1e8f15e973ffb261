"""The shipped policies, each run."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import policies
from policies.checker import check, parse
from policies.evaluator import decide
from policies.model import BackendCard, BudgetState, Decision, Facts, RequestFeatures

FOLDER = Path(policies.__file__).parent
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
BUNDLED = [
    BackendCard(name="nano", tier="nano", model="bundled:nano", context_tokens=1024),
    BackendCard(name="small", tier="small", model="bundled:small", context_tokens=1024),
    BackendCard(name="base", tier="base", model="m"),
]
FOREIGN = [
    BackendCard(name="dear", tier="large", model="m", usd_per_mtok=10.0),
    BackendCard(name="cheap", tier="large", model="m", usd_per_mtok=0.2),
]


def run(
    name: str, *, cards: list[BackendCard] = BUNDLED, left: float = 1.0, **about: Any
) -> Decision:
    features = RequestFeatures(
        **{"task": "knowledge", "difficulty": 0.5, "prompt_tokens": 30, **about}
    )
    policy = parse((FOLDER / f"{name}.toml").read_text(encoding="utf-8"), name)
    facts = Facts(features=features, model="auto")
    return decide(policy, facts, cards, BudgetState(left=left), NOW, 0.5)


def test_shipped_policies_are_the_three() -> None:
    """default, cheapest and quality_first are in the package."""
    assert sorted(p.stem for p in FOLDER.glob("*.toml")) == ["cheapest", "default", "quality_first"]


@pytest.mark.parametrize("name", ["default", "cheapest", "quality_first"])
def test_shipped_policy_is_valid_and_serves_any_fleet(name: str) -> None:
    """No problem on the bundled models; with other tiers only warnings, and all can answer."""
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert check(text, {"nano", "small", "base"}) == []
    assert {problem.level for problem in check(text, {"large"})} == {"warning"}
    assert parse(text).description
    assert set(run(name).candidates) == {"nano", "small", "base"}
    assert run(name, cards=FOREIGN).candidates == ("cheap", "dear")


@pytest.mark.parametrize(
    ("about", "rule", "winner"),
    [
        ({"task": "chat", "difficulty": 0.9}, "small-talk", "nano"),
        ({"task": "chat", "prompt_tokens": 500}, "default", "base"),
        ({"quality": {"nano": 0.8, "small": 0.9}}, "nano-suffices", "nano"),
        ({"quality": {"nano": 0.79, "small": 0.9}}, "small-suffices", "small"),
        ({"quality": {"nano": 0.9, "small": 0.9}, "prompt_tokens": 300}, "small-suffices", "small"),
        ({"quality": {"nano": 0.2, "small": 0.74}}, "default", "base"),
        ({"task": "maths", "difficulty": 0.9}, "default", "base"),
        ({"wants": frozenset({"json"})}, "structured-answers", "base"),
        ({"wants": frozenset({"tools"})}, "tool-calls", "base"),
        ({"difficulty": 0.9, "left": 0.01}, "budget-nearly-spent", "nano"),
    ],
)
def test_default_takes_the_smallest_model_that_will_do(
    about: dict[str, Any], rule: str, winner: str
) -> None:
    """Small talk and what nano answers well go to nano, then small; the rest goes to base."""
    decision = run("default", **about)
    assert (decision.rule, decision.candidates[0]) == (rule, winner)


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_cheapest_always_starts_with_nano(difficulty: float) -> None:
    """Difficulty makes no difference to cheapest."""
    assert run("cheapest", difficulty=difficulty).candidates[0] == "nano"


def test_quality_first_leaves_base_only_for_trivial_chat_while_it_is_busy() -> None:
    """Everything goes to base, but trivial small talk makes way under load."""
    chat = {"task": "chat", "difficulty": 0.1}
    assert run("quality_first", **chat).candidates[0] == "base"
    busy = [*BUNDLED[:2], BackendCard(name="base", tier="base", model="m", load=1.2)]
    assert run("quality_first", cards=busy, **chat).candidates[0] == "small"
    assert run("quality_first", cards=busy, task="maths").candidates[0] == "base"
