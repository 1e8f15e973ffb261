"""Deciding: pure, total, first match wins, and the reasons say why."""

import copy
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.evaluator import CompiledPolicy, decide
from policies.model import (
    BackendCard,
    BackendRange,
    BudgetState,
    Decision,
    Facts,
    Hours,
    Policy,
    Range,
    RequestFeatures,
    Route,
    Rule,
    When,
)
from tests.policies import strategies as any_

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday
CARDS = {
    "nano": BackendCard(name="nano", tier="nano", model="m"),
    "small": BackendCard(name="small", tier="small", model="m"),
}


def facts(**changes: Any) -> Facts:
    kinds = {"task", "difficulty", "language", "prompt_tokens", "turns", "wants", "quality"}
    about = {name: changes.pop(name) for name in kinds & changes.keys()}
    features = RequestFeatures(**{"task": "chat", "difficulty": 0.3, "prompt_tokens": 10, **about})
    return Facts(**{"features": features, "model": "auto", **changes})


def verdict(when: When, *, given: Facts | None = None, **changes: Any) -> tuple[bool, str]:
    """Whether a rule with this condition matches, and why."""
    policy = Policy(rules=[Rule(name="r", when=when, route="nano")], default=Route(route="small"))
    situation: dict[str, Any] = {
        "cards": CARDS,
        "budget": BudgetState(),
        "now": NOON,
        "draw": 0.0,
        **changes,
    }
    decision = decide(policy, given or facts(), **situation)
    reason = decision.reasons[0]
    assert reason.subject == "rule r"
    assert reason.matched == (decision.rule == "r")
    return reason.matched, reason.why


@settings(max_examples=150, deadline=None)
@given(any_.policies(), any_.facts, any_.cards, any_.budgets, any_.moments, any_.draws)
def test_decide_is_total_and_pure(
    policy: Policy,
    about: Facts,
    cards: dict[str, BackendCard],
    budget: BudgetState,
    now: datetime,
    draw: float,
) -> None:
    """Any valid input gives a decision, twice the same, and changes nothing it was given."""
    before = copy.deepcopy((policy, about, cards, budget))
    first = decide(policy, about, cards, budget, now, draw)
    again = decide(CompiledPolicy(policy), about, list(cards.values()), budget, now, draw)
    assert first == again
    assert (policy, about, cards, budget) == before
    assert set(first.candidates) <= cards.keys()
    assert len(set(first.candidates)) == len(first.candidates)
    for name in first.candidates:
        assert about.endpoint in cards[name].endpoints
        assert about.needs <= cards[name].accepts
        assert about.allowed is None or name in about.allowed
    ready = [cards[name].ready for name in first.candidates]
    assert ready == sorted(ready, reverse=True), "a backend that is not ready goes last"
    if first.denied is not None:
        assert first.candidates == ()
    assert 0 < first.probability <= 1


IMPOSSIBLE = When(difficulty=Range(min=2.0))


@settings(max_examples=80, deadline=None)
@given(any_.policies(), any_.facts, any_.cards, any_.moments, any_.draws, st.integers(0, 4))
def test_decide_is_unmoved_by_an_impossible_rule(
    policy: Policy,
    about: Facts,
    cards: dict[str, BackendCard],
    now: datetime,
    draw: float,
    place: int,
) -> None:
    """A rule that can never match changes nothing but the reasons."""
    rules = list(policy.rules)
    rules.insert(place, Rule(name="never", when=IMPOSSIBLE, deny="never"))
    more = replace(policy, rules=rules)
    plain = decide(policy, about, cards, BudgetState(), now, draw)
    other = decide(more, about, cards, BudgetState(), now, draw)
    kept = tuple(reason for reason in other.reasons if reason.subject != "rule never")
    assert kept == plain.reasons
    for field in Decision.__struct_fields__:
        if field != "reasons":
            assert getattr(other, field) == getattr(plain, field)


@settings(max_examples=80, deadline=None)
@given(any_.policies(), any_.facts, any_.cards, any_.moments, any_.draws)
def test_decide_takes_the_first_match(
    policy: Policy, about: Facts, cards: dict[str, BackendCard], now: datetime, draw: float
) -> None:
    """Rules are tried in order until one matches; those after it are not looked at."""
    decision = decide(policy, about, cards, BudgetState(), now, draw)
    tried = [r for r in decision.reasons if r.subject.startswith(("rule ", "default"))]
    expected = [f"rule {rule.name}" for rule in policy.rules] + ["default"]
    assert [reason.subject for reason in tried] == expected[: len(tried)]
    assert [reason.matched for reason in tried] == [False] * (len(tried) - 1) + [True]
    assert tried[-1].subject in (f"rule {decision.rule}", decision.rule)
    assert all(reason.why for reason in decision.reasons)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0.05, 10), min_size=1, max_size=4))
def test_split_follows_its_weights(weights: dict[str, float]) -> None:
    """Over evenly spread draws each arm comes first as often as its weight says."""
    cards = {name: BackendCard(name=name, tier=f"t{name}", model="m") for name in "abcd"}
    policy = CompiledPolicy(Policy(default=Route(split=weights)))
    n = 1000
    first = Counter(
        policy.decide(facts(), cards, BudgetState(), NOON, (i + 0.5) / n).candidates[0]
        for i in range(n)
    )
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(first[name] / n - share) <= 2 / n
    chosen = policy.decide(facts(), cards, BudgetState(), NOON, 0.5)
    share = weights[chosen.candidates[0]] / sum(weights.values())
    assert chosen.probability == pytest.approx(share)


def test_split_passes_on_the_share_of_an_arm_that_cannot_answer() -> None:
    """With one arm down, every draw goes to the other, and the reason says so."""
    cards = {
        **CARDS,
        "nano": BackendCard(name="nano", tier="nano", model="m", ready=False),
    }
    policy = Policy(default=Route(split={"nano": 0.9, "small": 0.1}))
    decision = decide(policy, facts(), cards, BudgetState(), NOON, 0.0)
    assert decision.candidates == ("small",)
    assert decision.probability == 1.0
    assert any("nano cannot answer now" in reason.why for reason in decision.reasons)


@pytest.mark.parametrize(
    ("when", "given", "matches"),
    [
        (When(task=["code", "maths"]), {"task": "maths"}, True),
        (When(task=["code"]), {"task": "maths"}, False),
        (When(team=["search"]), {"team": "search"}, True),
        (When(team=["search"]), {}, False),
        (When(key=["k1"]), {"key": "k1"}, True),
        (When(key=["k1"]), {"key": "k2"}, False),
        (When(user=["u"]), {"user": "u"}, True),
        (When(user=["u"]), {"user": None}, False),
        (When(model=["gpt-4o"]), {"model": "gpt-4o"}, True),
        (When(model=["gpt-4o"]), {"model": "auto"}, False),
        (When(language=["de", "fr"]), {"language": "de"}, True),
        (When(language=["de"]), {"language": "en"}, False),
        (When(difficulty=Range(min=0.5)), {"difficulty": 0.5}, True),
        (When(difficulty=Range(max=0.5)), {"difficulty": 0.5}, False),
        (When(prompt_tokens=Range(min=10, max=20)), {"prompt_tokens": 19}, True),
        (When(prompt_tokens=Range(min=10, max=20)), {"prompt_tokens": 20}, False),
        (When(turns=Range(min=2)), {"turns": 2}, True),
        (When(turns=Range(min=2)), {"turns": 1}, False),
        (When(tags={"env": ["prod"]}), {"tags": {"env": "prod", "x": "y"}}, True),
        (When(tags={"env": ["prod"]}), {"tags": {"env": "dev"}}, False),
        (When(tags={"env": ["prod"], "x": ["y"]}), {"tags": {"env": "prod"}}, False),
        (When(wants=["json"]), {"wants": frozenset({"json", "tools"})}, True),
        (When(wants=["json", "tools"]), {"wants": frozenset({"json"})}, False),
        (When(quality=BackendRange(backend="small", min=0.8)), {"quality": {"small": 0.8}}, True),
        (When(quality=BackendRange(backend="small", min=0.8)), {"quality": {"small": 0.7}}, False),
        (When(quality=BackendRange(backend="small", min=0.8)), {"quality": {}}, False),
        (When(), {}, True),
    ],
)
def test_condition_holds_exactly_when_it_should(
    when: When, given: dict[str, Any], matches: bool
) -> None:
    """Lists hold for members; ranges include min and exclude max; all tags and wants must hold."""
    assert verdict(when, given=facts(**given))[0] is matches


def test_condition_words_name_the_value_and_what_was_asked_for() -> None:
    """A failed rule says each failing condition with its value; one that holds is left out."""
    when = When(task=["code"], difficulty=Range(min=0.5, max=0.9), language=["en"])
    matched, why = verdict(when, given=facts(task="chat", difficulty=0.25))
    assert not matched
    assert why == "task chat not in [code]; difficulty 0.25 is not in [0.5, 0.9)"


@pytest.mark.parametrize(("left", "matches"), [(0.1, False), (0.0999, True)])
def test_budget_left_max_is_exclusive(left: float, matches: bool) -> None:
    """`budget_left = {max = 0.1}` holds below a tenth, not at it."""
    assert verdict(When(budget_left=Range(max=0.1)), budget=BudgetState(left=left))[0] is matches


def test_load_of_a_tier_holds_when_any_of_its_backends_is_in_range() -> None:
    """A tier's load matches through any backend; an unknown name never matches."""
    cards = [
        BackendCard(name="s1", tier="small", model="m", load=0.2),
        BackendCard(name="s2", tier="small", model="m", load=1.5),
    ]
    busy = When(load=BackendRange(backend="small", min=1.0))
    assert verdict(busy, cards=cards) == (True, "load of s2 1.5 is >= 1")
    idle = When(load=BackendRange(backend="s1", min=1.0))
    assert verdict(idle, cards=cards) == (False, "load of s1 0.2 is not >= 1")
    unknown = When(load=BackendRange(backend="huge", min=0.0))
    assert verdict(unknown, cards=cards) == (False, "load of huge is unknown")


@pytest.mark.parametrize(
    ("hours", "now", "matches"),
    [
        (Hours(from_="09:00", to="17:00"), "2026-03-04T09:00+00:00", True),
        (Hours(from_="09:00", to="17:00"), "2026-03-04T17:00+00:00", False),
        (Hours(from_="00:00", to="24:00"), "2026-03-04T23:59+00:00", True),
        # passes midnight, and belongs to the day on which it begins
        (Hours(from_="22:00", to="06:00"), "2026-03-04T23:00+00:00", True),
        (Hours(from_="22:00", to="06:00"), "2026-03-04T05:59+00:00", True),
        (Hours(from_="22:00", to="06:00"), "2026-03-04T06:00+00:00", False),
        (Hours(from_="22:00", to="06:00", days=["tue"]), "2026-03-04T05:00+00:00", True),
        (Hours(from_="22:00", to="06:00", days=["wed"]), "2026-03-04T05:00+00:00", False),
        (Hours(from_="22:00", to="06:00", days=["sun"]), "2026-03-09T01:00+00:00", True),
        # the zone's own clock, summer time included
        (Hours(from_="09:00", to="10:00", tz="Europe/Berlin"), "2026-03-04T08:30+00:00", True),
        (Hours(from_="09:00", to="10:00", tz="Europe/Berlin"), "2026-07-01T08:30+00:00", False),
        (Hours(from_="09:00", to="10:00", tz="Europe/Berlin"), "2026-07-01T07:30+00:00", True),
        (
            Hours(from_="00:00", to="06:00", tz="Asia/Tokyo", days=["thu"]),
            "2026-03-04T16:00+00:00",
            True,
        ),
    ],
)
def test_hours_follow_zone_days_and_midnight(hours: Hours, now: str, matches: bool) -> None:
    """The window is in its own time zone, half-open, and may pass midnight."""
    assert verdict(When(hours=hours), now=datetime.fromisoformat(now))[0] is matches


def test_hours_without_a_known_zone_never_match() -> None:
    """What `policy check` refuses does not raise when it is asked all the same."""
    assert verdict(When(hours=Hours(from_="09:00", to="17:00", tz="Mars/Base")))[0] is False


def test_tier_expands_to_ready_then_less_loaded_backends() -> None:
    """Of a tier the ready ones come first, the least loaded of them first of all."""
    cards = [
        BackendCard(name="a", tier="t", model="m", load=0.1, ready=False),
        BackendCard(name="b", tier="t", model="m", load=0.9),
        BackendCard(name="c", tier="t", model="m", load=0.2),
        BackendCard(name="other", tier="u", model="m", load=0.0),
    ]
    policy = Policy(default=Route(route="t", fallbacks=["other", "b"]))
    decision = decide(policy, facts(), cards, BudgetState(), NOON, 0.0)
    assert decision.candidates == ("c", "b", "other", "a")


def test_star_stands_for_all_others_cheapest_first() -> None:
    """`*` brings in every other backend; one without a price of its own is paid for anyway."""
    cards = [
        BackendCard(name="dear", tier="x", model="m", usd_per_mtok=9.0),
        BackendCard(name="cheap", tier="x", model="m", usd_per_mtok=0.5),
        BackendCard(name="ours", tier="y", model="m", load=0.9),
    ]
    policy = Policy(default=Route(route="missing", fallbacks=["*"]))
    decision = decide(policy, facts(), cards, BudgetState(), NOON, 0.0)
    assert decision.candidates == ("ours", "cheap", "dear")
    assert [r.why for r in decision.reasons if r.subject == "target missing"] == [
        "no such tier or backend"
    ]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"needs": frozenset({"tools"})}, "does not accept tools"),
        ({"allowed": frozenset({"small"})}, "not what model 'auto' names"),
        (
            {"prompt_tokens_bound": 91},
            "context 100 tokens; the prompt has at most 91, the answer 10",
        ),
        (
            {"prompt_tokens_exact": {"nano": 91}},
            "context 100 tokens; the prompt has 91, the answer 10",
        ),
        ({"endpoint": "embeddings"}, "does not serve embeddings"),
    ],
)
def test_candidate_that_cannot_answer_is_left_out_with_its_reason(
    changes: dict[str, Any], why: str
) -> None:
    """Capabilities, the requested model, the context and the endpoint each exclude, and say so."""
    cards = [BackendCard(name="nano", tier="nano", model="m", context_tokens=100)]
    policy = Policy(default=Route(route="nano"))
    decision = decide(policy, facts(max_tokens=10, **changes), cards, BudgetState(), NOON, 0.0)
    assert decision.candidates == ()
    assert decision.denied is None
    assert why in [r.why for r in decision.reasons if r.subject == "backend nano"]


def test_context_fit_uses_the_smaller_of_both_answer_caps() -> None:
    """A rule's max_tokens makes room for a prompt that the request's own max_tokens would not."""
    cards = [BackendCard(name="nano", tier="nano", model="m", context_tokens=100)]
    about = facts(max_tokens=50, prompt_tokens_bound=90)
    without = Policy(default=Route(route="nano"))
    capped = Policy(default=Route(route="nano", max_tokens=10))
    assert decide(without, about, cards, BudgetState(), NOON, 0.0).candidates == ()
    decision = decide(capped, about, cards, BudgetState(), NOON, 0.0)
    assert decision.candidates == ("nano",)
    assert decision.max_tokens == 10


def test_denial_has_no_candidates_and_says_why() -> None:
    """A deny rule ends the decision with its words."""
    policy = Policy(
        rules=[Rule(name="no", when=When(team=["x"]), deny="team x is closed")],
        default=Route(route="nano"),
    )
    decision = decide(policy, facts(team="x"), CARDS, BudgetState(), NOON, 0.0)
    assert (decision.rule, decision.candidates, decision.denied) == ("no", (), "team x is closed")


def test_shadow_is_a_backend_even_when_the_model_names_another() -> None:
    """The copy goes where the operator says, whatever model was asked for."""
    policy = Policy(default=Route(route="nano", shadow="small"))
    about = facts(allowed=frozenset({"nano"}))
    decision = decide(policy, about, CARDS, BudgetState(), NOON, 0.0)
    assert (decision.candidates, decision.shadow) == (("nano",), "small")
    nowhere = Policy(default=Route(route="nano", shadow="huge"))
    assert decide(nowhere, about, CARDS, BudgetState(), NOON, 0.0).shadow is None


def test_embeddings_go_to_an_encoder_under_a_policy_that_routes_text() -> None:
    """Rules about text tiers do not stand in the way of embeddings, but a denial does."""
    cards = {
        **CARDS,
        "minilm": BackendCard(
            name="minilm", tier="minilm", model="m", endpoints=frozenset({"embeddings"})
        ),
    }
    about = facts(endpoint="embeddings")
    policy = Policy(default=Route(route="small"))
    assert decide(policy, about, cards, BudgetState(), NOON, 0.0).candidates == ("minilm",)
    denied = Policy(default=Route(deny="no"))
    assert decide(denied, about, cards, BudgetState(), NOON, 0.0).candidates == ()


def test_decide_with_twenty_rules_is_quick() -> None:
    """Twenty rules of two conditions cost a fraction of a millisecond."""
    rules = [
        Rule(name=f"r{i}", when=When(team=[f"t{i}"], difficulty=Range(min=0.5)), route="nano")
        for i in range(20)
    ]
    policy = CompiledPolicy(Policy(rules=rules, default=Route(route="small")))
    about = facts(difficulty=0.9)
    best = min(_seconds(policy, about) for _ in range(300))
    assert best < 0.0005, "five times the goal: the machine that runs tests may be busy"


def _seconds(policy: CompiledPolicy, about: Facts) -> float:
    start = time.perf_counter()
    policy.decide(about, CARDS, BudgetState(), NOON, 0.5)
    return time.perf_counter() - start
