"""Fitting judges, and what cascades are worth, on outcomes whose truth is known."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.learning.cascades import Climbed, Setting, climb, settings
from gateway.learning.costs import ExpectedCosts
from gateway.learning.judges import fit_judges, judges_card
from gateway.learning.outcomes import Outcomes, read_outcomes
from gateway.learning.quality import FOLDS
from gateway.routing.climbs import Told
from gateway.routing.climbs import climb as expected_climb
from gateway.routing.judges import Judges, Signals, write_judges
from policies.model import Accept

ROWS = 600


def made() -> tuple[Outcomes, np.ndarray, np.ndarray]:
    """Two backends; the cheap one is good exactly where it is sure, the dear one elsewhere, too,
    but for a third that nobody can answer."""
    rng = np.random.default_rng(3)
    kind = rng.integers(0, 3, ROWS)
    scores = np.stack([kind == 0, kind <= 1], axis=1).astype(float)
    sure = np.where(kind == 0, -0.05, np.where(kind == 1, -1.0, -3.0))
    logprob = np.stack([sure + rng.normal(0, 0.01, ROWS), np.full(ROWS, -0.5)], axis=1)
    outcomes = Outcomes(
        prompts=[f"question {row}" for row in range(ROWS)],
        backends=["cheap", "dear"],
        scores=scores,
        costs=np.tile([1.0, 10.0], (ROWS, 1)),
        costs_assumed=False,
        test=np.zeros(ROWS, dtype=bool),
        practice=np.zeros(ROWS, dtype=bool),
        suites=[""] * ROWS,
        sha256="",
        signals={"logprob": np.minimum(logprob, 0.0)},
    )
    return outcomes, np.full((ROWS, 2), 0.5), rng.integers(0, FOLDS + 1, ROWS)


def test_judges_find_out_when_another_answer_would_be_better() -> None:
    """Unsure answers are told apart: some are worth replacing, hopeless ones are not."""
    outcomes, quality, folds = made()
    judged = fit_judges(outcomes, quality, folds, "v")
    card = judges_card(judged.judges)["cheap"]["logprob"]
    assert card["rows"] == ROWS
    assert (card["auc"] or 0) > 0.95
    gains = [
        judged.judges.weigh(
            "cheap",
            "logprob",
            Signals(logprob=sure, margin=0.0, entropy=0.0, tokens=1),
            {"cheap": 0.5, "dear": 0.5},
            ["dear"],
        )[1]["dear"]
        for sure in (-0.05, -1.0, -3.0)
    ]
    good, doubtful, hopeless = gains
    assert doubtful > 0.3
    assert good < 0.2
    assert hopeless < 0.2


def test_fitted_judges_are_those_that_serve(tmp_path: Path) -> None:
    """What is written and read again says what was said out of fold, near enough."""
    outcomes, quality, folds = made()
    judged = fit_judges(outcomes, quality, folds, "v")
    write_judges(judged.judges, tmp_path)
    served = Judges.load(tmp_path, {})
    assert served == judged.judges
    row = int(np.flatnonzero(folds == FOLDS)[0])  # a frozen row was judged by the same fit
    signal = Signals(
        logprob=float(outcomes.signals["logprob"][row, 0]), margin=0.0, entropy=0.0, tokens=1
    )
    said, _ = served.weigh("cheap", "logprob", signal, {"cheap": 0.5, "dear": 0.5})
    assert said == pytest.approx(judged.p_good["logprob"][row, 0], abs=1e-4)


def test_cascade_costs_all_rungs_and_stops_where_it_does_not_pay() -> None:
    """By min all doubtful answers climb; with min_gain only those that another would better."""
    outcomes, quality, folds = made()
    judged = fit_judges(outcomes, quality, folds, "")
    tried = [Setting((0, 1), 0.7), Setting((0, 1), 1.0, 0.25), Setting((1,))]
    rows = np.ones(ROWS, dtype=bool)
    expected = ExpectedCosts.of(outcomes, rows)
    seen = Climbed.of(tried, outcomes, quality, judged.p_above["logprob"], expected, rows)
    cost, score = seen.choices.costs.mean(0), seen.choices.scores.mean(0)
    best = outcomes.scores[:, 1].mean()
    assert score == pytest.approx([best, best, best], abs=0.02)
    assert cost[1] < cost[0] < cost[2]
    assert seen.as_good(best - 0.02) == 1


def test_rung_that_is_not_asked_costs_nothing() -> None:
    """Where the question says that the dear one is better by skip_gain, it is asked alone."""
    quality = np.array([[0.2, 0.9], [0.8, 0.9]])
    p_above = np.ones((2, 2, 2))
    scores, costs = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 10.0], [1.0, 10.0]])
    setting = Setting((0, 1), 0.5, skip_gain=0.5)
    cost, score = climb(setting, quality, p_above, scores, costs, known(costs))
    assert cost.tolist() == [10.0, 1.0]
    assert score.tolist() == [1.0, 1.0]


def test_dear_answers_must_promise_more_for_a_dollar() -> None:
    """Of two equal gains the cheaper one is taken; a rung is left out where that saves money."""
    quality, p_above = np.tile([0.2, 0.7], (2, 1)), np.tile([[0.2, 0.7], [np.nan, 0.7]], (2, 1, 1))
    scores, costs = np.tile([0.0, 1.0], (2, 1)), np.array([[0.1, 1.0], [1.0, 10.0]])
    climbing = Setting((0, 1), 1.0, 0.0, lambda_cost_usd=0.2)
    cost, score = climb(climbing, quality, p_above, scores, costs, known(costs))
    assert cost.tolist() == [1.1, 1.0]
    assert score.tolist() == [1.0, 0.0]
    skipping = replace(climbing, lambda_cost_usd=0.0, skip_lambda_cost_usd=0.2)
    assert climb(skipping, quality, p_above, scores, costs, known(costs))[0].tolist() == [1.0, 11.0]


def known(costs: NDArray[np.float64]) -> ExpectedCosts:
    """What came out is what was expected."""
    return ExpectedCosts(costs, np.broadcast_to(costs[:, None], (*costs.shape, costs.shape[1])))


def test_expected_costs_follow_prompt_and_answer() -> None:
    """A line each, through measured rows: by the prompt alone, then by what an answer took, too."""
    outcomes, _, _ = made()
    rng = np.random.default_rng(3)
    tokens = np.tile(rng.integers(1, 50, (ROWS, 1)), (1, 2)).astype(float)
    size = np.array([len(prompt) for prompt in outcomes.prompts])
    costs = np.stack([size + tokens[:, 0], 3 * size + 8 * tokens[:, 0]], axis=1)
    told = replace(outcomes, costs=costs, signals={**outcomes.signals, "tokens": tokens})
    rows = np.arange(ROWS) % 2 == 0
    expected = ExpectedCosts.of(told, rows)
    assert expected.after[:, 0] == pytest.approx(costs)
    assert expected.question[rows].mean(axis=0) == pytest.approx(costs[rows].mean(axis=0))
    assert np.ptp(expected.question[:, 1]) < np.ptp(costs[:, 1])


def test_settings_are_ladders_from_cheap_to_dear() -> None:
    """Of many backends a few are tried."""
    found = list(settings(9, 1.0))
    assert all(list(setting.ladder) == sorted(setting.ladder) for setting in found)
    assert {len(setting.ladder) for setting in found} == {1, 2, 3, 4}


def test_outcomes_carry_what_judges_need(tmp_path: Path) -> None:
    """Log-probabilities, tokens and other judges' words, also out of a compressed file."""
    lines = [
        {
            "prompt": f"p{row}",
            "scores": {"a": row % 2, "b": 1},
            "cost_usd": {"a": 1, "b": 2},
            "logprob": {"a": -0.1},
            "completion_tokens": {"a": 4, "b": 2},
            "judged": {"consistency": {"b": 0.5}},
        }
        for row in range(30)
    ]
    path = tmp_path / "outcomes.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    signals = read_outcomes(path).signals
    assert sorted(signals) == ["consistency", "logprob", "tokens"]
    assert signals["tokens"][0].tolist() == [3.0, 1.0]
    assert np.isnan(signals["logprob"][0, 1])
    assert signals["consistency"][0, 1] == 0.5


@pytest.mark.parametrize(("bar", "min_gain"), [(0.7, -1.0), (0.3, -1.0), (1.0, 0.25), (1.0, 0.6)])
def test_spread_foretells_what_a_cascade_costs_and_is_worth(bar: float, min_gain: float) -> None:
    """Without any answer seen, expected cost and quality are near those of the rows themselves."""
    outcomes, _, folds = made()
    quality = np.tile(outcomes.scores.mean(axis=0), (ROWS, 1))  # a question's promise holds
    judged = fit_judges(outcomes, quality, folds, "")
    accept = Accept(judge="logprob", min=bar, min_gain=min_gain)
    columns = {name: outcomes.costs[:, k] for k, name in enumerate(outcomes.backends)}
    told = Told(
        quality={name: quality[:, k] for k, name in enumerate(outcomes.backends)},
        costs=columns,
        seconds=columns,
        looks={},
        p_good={},
        gain={},
    )
    foretold = expected_climb(["cheap", "dear"], accept, told, judged.judges)
    setting = Setting((0, 1), bar, min_gain)
    p_above = judged.p_above["logprob"]
    costs = outcomes.costs
    cost, score = climb(setting, quality, p_above, outcomes.scores, costs, known(costs))
    assert foretold.cost.mean() == pytest.approx(cost.mean(), abs=0.8)
    assert foretold.quality.mean() == pytest.approx(score.mean(), abs=0.06)
    assert set(foretold.source.tolist()) == {1}


@pytest.mark.parametrize("promised", [0.02, 0.13, 0.5, 0.9])
def test_a_look_at_the_answer_is_not_expected_to_change_promises(promised: float) -> None:
    """Rejecting at most what is worthless leaves the mean where the question put it."""
    outcomes, quality, folds = made()
    judges = fit_judges(outcomes, quality, folds, "").judges
    one = np.array([1.0])
    told = Told(
        quality=dict.fromkeys(outcomes.backends, promised * one),
        costs=dict.fromkeys(outcomes.backends, one),
        seconds=dict.fromkeys(outcomes.backends, one),
        looks={},
        p_good={},
        gain={},
    )
    accept = Accept(judge="logprob", min=0.0)
    found = expected_climb(["cheap", "dear"], accept, told, judges)
    assert found.asked[0] == 1.0
    assert found.quality[0] == pytest.approx(promised, abs=0.005)


@pytest.mark.parametrize("judge", ["logprob", "margin", "entropy", "answer"])
def test_every_judge_of_tokens_is_calibrated_and_serves(judge: str) -> None:
    """Each signal of the outcomes is fitted by itself; what serves says what was measured."""
    outcomes, quality, folds = made()
    sure = outcomes.signals["logprob"]
    signals = {"logprob": sure, "margin": -1 / (sure - 0.1), "entropy": -sure}
    judged = fit_judges(replace(outcomes, signals=signals), quality, folds, "v")
    card = judges_card(judged.judges)["cheap"][judge]
    assert (card["auc"] or 0) > 0.95
    assert (card["ece"] or 0) < 0.1
    assert len(judged.judges.spread["cheap"][judge].own) == 24
    row = int(np.flatnonzero(folds == FOLDS)[0])
    told = {name: float(table[row, 0]) for name, table in signals.items()}
    said, _ = judged.judges.weigh(
        "cheap", judge, Signals(**told, tokens=1), {"cheap": 0.5, "dear": 0.5}
    )
    assert said == pytest.approx(judged.p_good[judge][row, 0], abs=1e-4)
