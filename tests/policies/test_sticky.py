"""A conversation moves where that pays, and stays where its prefix is warm otherwise."""

from datetime import UTC, datetime

import pytest

from policies.checker import check, parse
from policies.evaluator import decide
from policies.model import (
    BackendCard,
    BudgetState,
    Decision,
    Estimate,
    Facts,
    RequestFeatures,
    Warm,
)

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ROUTE = '[sticky]\nmin_gain = 0.05\n[default]\nroute = "small"\nfallbacks = ["base"]\n'
OBJECTIVE = '[sticky]\n[default]\nobjective = { minimise = "cost", min_quality = 0.5 }\n'


def decided(
    policy: str = ROUTE,
    *,
    quality: tuple[float, float] = (0.6, 0.8),
    cost: tuple[int | None, int | None] = (500, 400),
    windows: tuple[int | None, int | None] = (None, None),
    warm: str | None = "base",
    ready: bool = True,
) -> Decision:
    """Of `small` and `base`, in that order."""
    names = ("small", "base")
    facts = Facts(
        features=RequestFeatures(
            task="chat",
            difficulty=0.5,
            prompt_tokens=1000,
            turns=3,
            quality=dict(zip(names, quality, strict=True)),
        ),
        model="auto",
        estimates={n: Estimate(cost_nano_usd=c) for n, c in zip(names, cost, strict=True)},
        warm=None if warm is None else Warm(backend=warm, tokens=900),
    )
    cards = {
        name: BackendCard(
            name=name, tier=name, model="m", context_tokens=size, ready=ready or name == "small"
        )
        for name, size in zip(names, windows, strict=True)
    }
    return decide(parse(policy), facts, cards, BudgetState(), NOW, 0.0)


def test_chat_stays_where_moving_neither_gains_nor_saves() -> None:
    """The rule would route to small; base has the prefix, answers better and costs less for it."""
    found = decided()
    assert found.candidates == ("base", "small")
    (reason,) = [r for r in found.reasons if r.subject == "sticky"]
    assert reason.matched
    assert reason.why.startswith("stays with base: small would gain -")
    moved = decided(quality=(0.9, 0.8)).reasons
    assert [r.why.partition(":")[0] for r in moved if r.subject == "sticky"] == ["moves to small"]


@pytest.mark.parametrize(
    "facts",
    [
        {"warm": None},
        {"quality": (0.9, 0.8)},  # gains
        {"quality": (0.78, 0.8), "cost": (300, 400)},  # saves, and loses next to nothing
        {"ready": False},
        {"warm": "elsewhere"},
    ],
)
def test_chat_moves_where_it_pays_or_must(facts: dict[str, object]) -> None:
    """The rule's own choice comes first."""
    assert decided(**facts).candidates[0] == "small"  # type: ignore[arg-type]


def test_saving_does_not_pay_for_lost_quality() -> None:
    """Cheaper by a quarter, but worse by more than the least gain: it stays."""
    assert decided(quality=(0.7, 0.8), cost=(300, 400)).candidates[0] == "base"


@pytest.mark.parametrize("policy", [ROUTE, OBJECTIVE])
def test_chat_does_not_move_to_a_window_that_it_will_soon_fill(policy: str) -> None:
    """Whatever is gained: twice the conversation must fit into a smaller window."""
    better = {"quality": (0.99, 0.6), "cost": (1, 400)}
    assert decided(policy, windows=(1999, 8000), **better).candidates[0] == "base"  # type: ignore[arg-type]
    assert decided(policy, windows=(2000, 8000), **better).candidates[0] == "small"  # type: ignore[arg-type]
    assert decided(policy, windows=(1999, 1999), **better).candidates[0] == "small"  # type: ignore[arg-type]


def test_objectives_weigh_the_warm_prefix_by_its_cost() -> None:
    """Nothing but the estimate decides: the warm one is cheapest as long as it is."""
    assert decided(OBJECTIVE, cost=(500, 400)).candidates[0] == "base"
    assert decided(OBJECTIVE, cost=(300, 400)).candidates[0] == "small"


def test_without_sticky_each_turn_is_the_first() -> None:
    """A policy that does not ask for it is decided as before."""
    assert decided(ROUTE.split("\n", 2)[2]).candidates[0] == "small"


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ("min_gain = 2", "sticky.min_gain"),
        ("headroom = 0.5", "sticky.headroom"),
        ("gain = 1", "sticky.gain"),
    ],
)
def test_wrong_values_are_named_with_their_line(table: str, path: str) -> None:
    """File, line and key."""
    (problem,) = check(f"description = ''\n[sticky]\n{table}\n[default]\nroute = 'small'\n")
    assert (problem.path, problem.line) == (path, 3)
