"""The shipped policies, each run."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import policies
from policies.checker import check, parse
from policies.evaluator import decide
from policies.model import BackendCard, BudgetState, Decision, Estimate, Facts, RequestFeatures

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


NAMES = ("cascade", "cheapest", "code_first", "cost_cap", "default", "latency_slo",
         "off_peak_batch", "quality_first", "quality_floor")  # fmt: skip
BY_OBJECTIVE = ("cost_cap", "latency_slo", "quality_floor")
QUALITY = {"nano": 0.5, "small": 0.82, "base": 0.9}


def run(
    name: str,
    *,
    cards: list[BackendCard] = BUNDLED,
    left: float = 1.0,
    tags: dict[str, str] | None = None,
    estimates: dict[str, Estimate] | None = None,
    now: datetime = NOW,
    **about: Any,
) -> Decision:
    features = RequestFeatures(
        **{"task": "knowledge", "difficulty": 0.5, "prompt_tokens": 30, **about}
    )
    policy = parse((FOLDER / f"{name}.toml").read_text(encoding="utf-8"), name)
    facts = Facts(features=features, model="auto", tags=tags or {}, estimates=estimates or {})
    return decide(policy, facts, cards, BudgetState(left=left), now, 0.5)


def test_every_shipped_policy_is_run_here() -> None:
    """None is in the package that this file does not name."""
    assert sorted(p.stem for p in FOLDER.glob("*.toml")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_policy_is_valid_and_serves_any_fleet(name: str) -> None:
    """No problem on the bundled models; with other tiers only warnings, and all can answer."""
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert check(text, {"nano", "small", "base"}) == []
    assert {problem.level for problem in check(text, {"large"})} <= {"warning"}
    assert parse(text).description
    assert set(run(name).candidates) == {"nano", "small", "base"}
    elsewhere = run(name, cards=FOREIGN).candidates
    assert sorted(elsewhere) == ["cheap", "dear"]
    assert name in BY_OBJECTIVE or elsewhere[0] == "cheap"


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


@pytest.mark.parametrize(
    ("about", "rungs"),
    [
        ({"quality": {"nano": 0.7, "small": 0.71, "base": 0.72}}, ("nano", "base")),
        ({"quality": {"nano": 0.05, "small": 0.05, "base": 0.95}}, ()),
        ({"wants": frozenset({"json"})}, ("small", "base")),
    ],
)
def test_cascade_leaves_out_who_is_far_behind(about: dict[str, Any], rungs: Any) -> None:
    """The smallest model begins, but not where the question says that base is better by far."""
    found = run("cascade", **about).rungs
    assert (found[:1] + found[-1:]) == rungs


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_cheapest_always_starts_with_nano(difficulty: float) -> None:
    """Difficulty makes no difference to cheapest."""
    assert run("cheapest", difficulty=difficulty).candidates[0] == "nano"


def test_quality_first_leaves_base_only_for_trivial_chat_while_it_is_busy() -> None:
    """Everything goes to base, but trivial small talk makes way under load."""
    chat: dict[str, Any] = {"task": "chat", "difficulty": 0.1}
    assert run("quality_first", **chat).candidates[0] == "base"
    busy = [*BUNDLED[:2], BackendCard(name="base", tier="base", model="m", load=1.2)]
    assert run("quality_first", cards=busy, **chat).candidates[0] == "small"
    assert run("quality_first", cards=busy, task="maths").candidates[0] == "base"


def estimates(**figures: tuple[float, float]) -> dict[str, Estimate]:
    """(dollars, seconds) by backend."""
    return {
        name: Estimate(cost_nano_usd=round(usd * 1e9), latency_s=seconds)
        for name, (usd, seconds) in figures.items()
    }


@pytest.mark.parametrize(
    ("prices", "left", "winner"),
    [
        (estimates(nano=(0.1, 1), small=(1, 1), base=(4.9, 1)), 1.0, "base"),
        (estimates(nano=(0.1, 1), small=(1, 1), base=(5.1, 1)), 1.0, "small"),
        (estimates(nano=(6, 1), small=(7, 1), base=(8, 1)), 1.0, "nano"),
        (estimates(nano=(0.1, 1), small=(1, 1), base=(4.9, 1)), 0.01, "nano"),
    ],
)
def test_cost_cap_buys_the_best_within_the_days_money(
    prices: dict[str, Estimate], left: float, winner: str
) -> None:
    """Above five dollars the next best; where all cost more, or a budget ends, the cheapest."""
    decision = run("cost_cap", estimates=prices, quality=QUALITY, left=left)
    assert decision.candidates[0] == winner


@pytest.mark.parametrize(
    ("base_s", "load", "winner"), [(1.0, 0.0, "base"), (3.5, 0.0, "small"), (1.0, 0.9, "small")]
)
def test_latency_slo_gives_quality_for_seconds(base_s: float, load: float, winner: str) -> None:
    """Two and a half seconds more outweigh eight points of quality; a busy base is left alone."""
    cards = [*BUNDLED[:2], BackendCard(name="base", tier="base", model="m", load=load)]
    times = estimates(nano=(0, 0.5), small=(0, 1), base=(0, base_s))
    decision = run("latency_slo", cards=cards, estimates=times, quality=QUALITY)
    assert decision.candidates[0] == winner


@pytest.mark.parametrize(
    ("about", "winner"),
    [
        ({"task": "code", "difficulty": 0.1}, "base"),
        ({"task": "maths", "difficulty": 0.6}, "base"),
        ({"task": "maths", "difficulty": 0.4}, "small"),
        ({"task": "chat"}, "nano"),
        ({"wants": frozenset({"tools"})}, "base"),
        ({"task": "knowledge", "difficulty": 0.9}, "small"),
    ],
)
def test_code_first_keeps_base_for_code(about: dict[str, Any], winner: str) -> None:
    """And for tools and hard maths."""
    assert run("code_first", **about).candidates[0] == winner


@pytest.mark.parametrize(
    ("now", "load", "tags", "winner"),
    [
        (datetime(2026, 3, 4, 23, tzinfo=UTC), 0.0, {"workload": "batch"}, "base"),
        (datetime(2026, 3, 7, 12, tzinfo=UTC), 0.0, {"workload": "batch"}, "base"),  # a Saturday
        (NOW, 0.0, {"workload": "batch"}, "small"),
        (NOW, 0.6, {"workload": "batch"}, "nano"),
        (NOW, 0.6, {}, "base"),
    ],
)
def test_off_peak_batch_waits_for_the_night(
    now: datetime, load: float, tags: dict[str, str], winner: str
) -> None:
    """By day batch work takes what people leave; they always have base."""
    cards = [
        BUNDLED[0],
        BackendCard(name="small", tier="small", model="m", load=load),
        BUNDLED[2],
    ]
    assert run("off_peak_batch", cards=cards, now=now, tags=tags).candidates[0] == winner


@pytest.mark.parametrize(
    ("quality", "winner"),
    [
        (QUALITY, "small"),
        ({"nano": 0.8, "small": 0.9, "base": 0.9}, "nano"),
        ({"nano": 0.1, "small": 0.3, "base": 0.7}, "base"),
    ],
)
def test_quality_floor_takes_the_cheapest_that_is_good_enough(
    quality: dict[str, float], winner: str
) -> None:
    """Four in five, else the best."""
    prices = estimates(nano=(1, 1), small=(2, 1), base=(3, 1))
    assert run("quality_floor", quality=quality, estimates=prices).candidates[0] == winner
