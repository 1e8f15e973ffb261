"""Cascades: which rungs are asked, which are left out, and who stands in."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.cascade import stands
from policies.evaluator import decide
from policies.model import (
    Accept,
    BackendCard,
    BudgetState,
    Estimate,
    Facts,
    Policy,
    RequestFeatures,
    Route,
)
from tests.policies import strategies as any_

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
CARDS = {
    name: BackendCard(name=name, tier=name, model="m", context_tokens=room)
    for name, room in (("nano", 100), ("small", 1000), ("base", 1000), ("other", 1000))
}
FACTS = Facts(
    features=RequestFeatures(
        task="chat", difficulty=0.3, prompt_tokens=10, quality={"nano": 0.25, "small": 0.75}
    ),
    model="auto",
)


def decided(
    facts: Facts = FACTS, cards: dict[str, BackendCard] = CARDS, **route: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(rungs, candidates)"""
    policy = Policy(default=Route(cascade=["nano", "small", "base"], **route))
    decision = decide(policy, facts, cards, BudgetState(), NOON, 0.0)
    assert (decision.accept is not None) == bool(decision.rungs)
    return decision.rungs, decision.candidates


def test_cascade_asks_its_rungs_in_order_then_the_fallbacks() -> None:
    """Rungs are the first candidates; who stands in for the last one comes after them."""
    assert decided(fallbacks=["other"]) == (
        ("nano", "small", "base"),
        ("nano", "small", "base", "other"),
    )


@pytest.mark.parametrize(
    ("changes", "rungs"),
    [
        ({"accept": Accept(skip_gain=0.4)}, ("small", "base")),
        ({"facts": replace(FACTS, prompt_tokens_bound=500)}, ("small", "base")),
        ({"facts": replace(FACTS, allowed=frozenset({"nano", "base"}))}, ("nano", "base")),
        ({"cards": CARDS | {"base": replace(CARDS["base"], ready=False)}}, ("nano", "small")),
    ],
)
def test_cascade_leaves_out_what_cannot_help(changes: Any, rungs: tuple[str, ...]) -> None:
    """Rungs that will fail, that are too small, that were not asked for, or that are not ready."""
    assert decided(**changes)[0] == rungs


@pytest.mark.parametrize(
    ("rate", "rungs"),
    [
        (1000.0, ("nano", "small", "base")),
        (400.0, ("small", "base")),
        (None, ("nano", "small", "base")),
    ],
)
def test_rung_is_left_out_where_its_price_saves_too_little(
    rate: float | None, rungs: tuple[str, ...]
) -> None:
    """Small is likelier to answer well by a half, and costs a thousandth of a dollar more."""
    prices = {"nano": 200_000, "small": 1_200_000}
    told = {name: Estimate(cost_nano_usd=cost) for name, cost in prices.items()}
    accept = Accept(skip_lambda_cost_usd=rate)
    assert decided(replace(FACTS, estimates=told), accept=accept)[0] == rungs
    assert decided(accept=accept)[0] == ("nano", "small", "base")  # nobody knows what they cost


def test_answer_stands_where_better_ones_cost_too_much() -> None:
    """A gain counts less what it costs, at the policy's rate."""
    accept = Accept(min=0.9, min_gain=0.1, lambda_cost_usd=200.0)
    assert not stands(0.5, 0.4, accept, 1_000_000)  # 0.4 - 0.2
    assert stands(0.5, 0.4, accept, 2_000_000)
    assert stands(0.95, 0.4, accept, 0)
    assert not stands(0.5, None, accept, 2_000_000)


def test_cascade_of_one_rung_is_a_plain_route() -> None:
    """Where nobody could take over, nothing is judged; the last rung is never skipped."""
    alone = replace(FACTS, allowed=frozenset({"nano"}))
    assert decided(alone, accept=Accept(skip_gain=0.0)) == ((), ("nano",))


def test_cascade_that_waits_for_its_backends_still_names_them() -> None:
    """With nobody ready the first one that comes back answers."""
    down = {name: replace(card, ready=False) for name, card in CARDS.items()}
    assert decided(cards=down) == ((), ("nano", "small", "base"))


def test_cascade_says_why_a_rung_is_left_out() -> None:
    """The reasons name the rung, its predicted quality and the bar."""
    policy = Policy(default=Route(cascade=["nano", "small"], accept=Accept(skip_gain=0.4)))
    reasons = decide(policy, FACTS, CARDS, BudgetState(), NOON, 0.0).reasons
    assert ("rung nano", "one above is predicted to be better by 0.500 >= skip_gain 0.4") in [
        (reason.subject, reason.why) for reason in reasons
    ]


@settings(max_examples=50, deadline=None)
@given(any_.facts, any_.cards, any_.ladders, any_.accepts, st.lists(any_.targets, max_size=2))
def test_rungs_are_ready_candidates_each_once(
    facts: Facts,
    cards: dict[str, BackendCard],
    ladder: list[str],
    accept: Accept | None,
    fallbacks: list[str],
) -> None:
    """Whatever is asked: rungs begin the candidates, all ready, none twice, never just one."""
    policy = Policy(default=Route(cascade=ladder, accept=accept, fallbacks=fallbacks))
    decision = decide(policy, facts, cards, BudgetState(), NOON, 0.0)
    rungs = decision.rungs
    assert len(rungs) != 1
    assert decision.candidates[: len(rungs)] == rungs
    assert all(cards[name].ready for name in rungs)
    assert len(set(decision.candidates)) == len(decision.candidates)
