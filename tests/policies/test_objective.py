"""Objectives: what is chosen, and that nothing dearer is chosen without merit."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.evaluator import decide
from policies.model import (
    BackendCard,
    BudgetState,
    Estimate,
    Facts,
    Objective,
    Policy,
    Range,
    RequestFeatures,
    Route,
    Rule,
    When,
)
from policies.objective import limit_nano_usd, merit_of
from tests.policies import strategies as any_

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
CARDS = {
    name: BackendCard(name=name, tier=name, model="m", load=load)
    for name, load in (("nano", 0.1), ("small", 0.2), ("base", 0.3))
}
QUALITY = {"nano": 0.5, "small": 0.8, "base": 0.9}
COSTS = {"nano": 1_000, "small": 5_000, "base": 40_000}
SECONDS = {"nano": 0.1, "small": 0.5, "base": 3.0}


def chosen(goal: Objective, **changes: Any) -> tuple[str, ...]:
    """The order of candidates under an objective as the default."""
    cards = changes.pop("cards", CARDS)
    costs, seconds = changes.pop("costs", COSTS), changes.pop("seconds", SECONDS)
    features = RequestFeatures(
        task="chat", difficulty=0.3, prompt_tokens=10, quality=changes.pop("quality", QUALITY)
    )
    estimates = {n: Estimate(cost_nano_usd=costs[n], latency_s=seconds.get(n)) for n in costs}
    facts = Facts(features=features, model="auto", estimates=estimates)
    budget = changes.pop("budget", BudgetState())
    policy = Policy(default=Route(objective=goal, **changes))
    return decide(policy, facts, cards, budget, NOON, 0.0).candidates


@pytest.mark.parametrize(
    ("goal", "order"),
    [
        (Objective(minimise="cost", min_quality=0.4), ("nano", "small", "base")),
        (Objective(minimise="cost", min_quality=0.75), ("small", "base", "nano")),
        (Objective(minimise="cost", min_quality=0.99), ("base", "small", "nano")),
        (Objective(maximise="quality"), ("base", "small", "nano")),
        (Objective(maximise="quality", max_cost_usd=0.00001), ("small", "nano", "base")),
        (Objective(maximise="quality", max_cost_usd=0.0), ("nano", "small", "base")),
        (Objective(maximise="quality", lambda_cost_usd=5000), ("small", "base", "nano")),
        (Objective(maximise="quality", lambda_cost_usd=10**6), ("nano", "small", "base")),
        (Objective(maximise="quality", mu_latency_s=0.05), ("small", "base", "nano")),
        (Objective(maximise="quality", among=["nano", "small"]), ("small", "nano")),
    ],
)
def test_objective_orders_backends(goal: Objective, order: tuple[str, ...]) -> None:
    """The cheapest good enough; the best affordable; quality less what dollars and seconds cost."""
    assert chosen(goal) == order


def test_objective_appends_fallbacks_and_says_why() -> None:
    """Whoever is not among the choices may still stand in; the reason names every prediction."""
    goal = Objective(maximise="quality", among=["nano"])
    assert chosen(goal, fallbacks=["*"])[0] == "nano"
    assert set(chosen(goal, fallbacks=["*"])) == set(CARDS)
    facts = Facts(
        features=RequestFeatures(task="chat", difficulty=0, prompt_tokens=1, quality=QUALITY),
        model="auto",
    )
    decision = decide(Policy(default=Route(objective=goal)), facts, CARDS, BudgetState(), NOON, 0)
    (reason,) = [r for r in decision.reasons if r.subject == "objective"]
    assert reason.why == "best quality: nano quality 0.500 cost ? latency ?"


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (Objective(minimise="cost", min_quality=0.75), "cheapest with quality >= 0.75: small "),
        (Objective(minimise="cost", min_quality=0.99), "nobody with quality >= 0.99, so the best"),
        (Objective(maximise="quality", max_cost_usd=1e-5), "best quality within $1e-05: small "),
        (Objective(maximise="quality", max_cost_usd=1e-9), "nobody within $1e-09, so the cheapest"),
        (Objective(maximise="quality", among=["gone"]), "best quality: nobody can answer"),
    ],
)
def test_objective_says_where_nobody_reaches_it(goal: Objective, words: str) -> None:
    """An explanation must not call what falls short good enough."""
    estimates = {name: Estimate(cost_nano_usd=cost) for name, cost in COSTS.items()}
    features = RequestFeatures(task="chat", difficulty=0, prompt_tokens=1, quality=QUALITY)
    facts = Facts(features=features, model="auto", estimates=estimates)
    decision = decide(Policy(default=Route(objective=goal)), facts, CARDS, BudgetState(), NOON, 0)
    (reason,) = [r for r in decision.reasons if r.subject == "objective"]
    assert reason.why.startswith(words)


def test_what_is_unknown_counts_against_a_backend() -> None:
    """No predicted quality: behind all others. No predicted cost: never within a limit."""
    known = {"nano": 0.2, "small": 0.1}
    assert chosen(Objective(maximise="quality"), quality=known)[-1] == "base"
    assert chosen(Objective(minimise="cost", min_quality=0.05), quality=known)[-1] == "base"
    capped = Objective(maximise="quality", max_cost_usd=1.0)
    assert chosen(capped, costs={"nano": 1, "small": 2})[-1] == "base"


def test_a_backend_that_was_never_timed_gets_its_chance() -> None:
    """An unknown latency costs nothing: who is measured cannot keep the place for ever."""
    goal = Objective(maximise="quality", mu_latency_s=0.05)
    assert chosen(goal, seconds={})[0] == "base"
    assert chosen(goal, seconds={"nano": 0.1})[0] == "base"
    assert chosen(goal, seconds={"nano": 0.1, "base": 30.0}) == ("small", "nano", "base")


def test_a_backend_that_is_down_comes_last() -> None:
    """Readiness goes before merit."""
    cards = {**CARDS, "base": BackendCard(name="base", tier="base", model="m", ready=False)}
    assert chosen(Objective(maximise="quality"), cards=cards) == ("small", "nano", "base")


def test_a_days_money_is_paced() -> None:
    """Half a day gone, half the money: the mean of before; overspent: nothing but the cheapest."""
    goal = Objective(maximise="quality", max_cost_usd=1.0, per="day")
    even = BudgetState(day_spent_usd=0.5, day_requests=1000)
    assert limit_nano_usd(goal, even, NOON) == 500_000
    fast = BudgetState(day_spent_usd=0.9, day_requests=1000)
    assert limit_nano_usd(goal, fast, NOON) == 100_000
    gone = BudgetState(day_spent_usd=2.0, day_requests=1000)
    assert limit_nano_usd(goal, gone, NOON) == 0
    assert chosen(goal, budget=gone)[0] == "nano"
    assert limit_nano_usd(goal, BudgetState(), NOON) == 1_000_000_000


@settings(max_examples=300, deadline=None)
@given(
    any_.objectives(), any_.facts, any_.cards, any_.budgets, any_.moments, st.sampled_from((0, 1))
)
def test_nothing_dearer_is_chosen_at_equal_merit(
    goal: Objective,
    facts: Facts,
    cards: dict[str, BackendCard],
    budget: BudgetState,
    now: datetime,
    place: int,
) -> None:
    """Whoever stands before a backend of equal merit and readiness does not cost more than it."""
    decision = decide(Policy(default=Route(objective=goal)), facts, cards, budget, now, 0)
    ranked = any(r.subject == "objective" and r.matched for r in decision.reasons)
    order = decision.candidates if ranked else ()  # embeddings go to anybody where it names nobody

    def figures(name: str) -> tuple[float | None, float, float]:
        estimate = facts.estimates.get(name)
        cost = estimate.cost_nano_usd if estimate else None
        latency = estimate.latency_s if estimate else None
        quality = facts.features.quality.get(name)
        merit = merit_of(quality, cost, latency, goal) if goal.maximise else (quality or -1.0)
        return quality, merit, float("inf") if cost is None else float(cost)

    for before, after in zip(order[place:], order[place + 1 :], strict=False):
        if cards[before].ready == cards[after].ready:
            _, merit, cost = figures(before)
            _, other, price = figures(after)
            assert cost <= price or merit != other


@settings(max_examples=150, deadline=None)
@given(any_.policies(), any_.facts, any_.cards, any_.budgets, any_.moments, any_.draws, st.data())
def test_an_impossible_rule_changes_nothing(
    policy: Policy,
    facts: Facts,
    cards: dict[str, BackendCard],
    budget: BudgetState,
    now: datetime,
    draw: float,
    data: st.DataObject,
) -> None:
    """A rule that nobody meets may stand anywhere: the decision stays, one reason more."""
    never = Rule(name="never", when=When(difficulty=Range(min=2.0)), deny="impossible")
    place = data.draw(st.integers(0, len(policy.rules)))
    rules = [*policy.rules[:place], never, *policy.rules[place:]]
    plain = decide(policy, facts, cards, budget, now, draw)
    more = decide(replace(policy, rules=rules), facts, cards, budget, now, draw)
    kept = tuple(reason for reason in more.reasons if reason.subject != "rule never")
    assert (more.rule, more.candidates, more.denied) == (plain.rule, plain.candidates, plain.denied)
    assert kept == plain.reasons
