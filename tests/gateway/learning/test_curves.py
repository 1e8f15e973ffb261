"""APGR, CPT and area: their values where they are known in closed form."""

import numpy as np
import pytest

from gateway.learning.curves import (
    Figure,
    by_merit,
    by_threshold,
    cost_curves,
    ranking,
)

N = 400
ALONE = np.arange(N)
RNG = np.random.default_rng(1)
SCORES = np.stack([RNG.random(N) < 0.4, RNG.random(N) < 0.8], axis=1).astype(float)
COSTS = np.tile([0.2, 1.0], (N, 1))
GAIN = SCORES[:, 1] - SCORES[:, 0]


def test_a_constant_score_is_the_shuffled_control() -> None:
    """Ties are sent in random order, in expectation: the diagonal, in every draw."""
    found = ranking(np.zeros(N), GAIN, ALONE)
    assert np.allclose(found.apgr, 0.5)
    assert np.allclose(found.cpt50, 0.5)
    assert np.allclose(found.cpt80, 0.8)


def test_apgr_and_cpt_of_a_perfect_order_are_known() -> None:
    """A quarter gains, no one loses: PGR is 1 from a quarter on."""
    gain = np.zeros(N)
    gain[: N // 4] = 1.0
    found = ranking(gain, gain, ALONE)
    assert found.apgr[0] == pytest.approx(1 - 1 / 8)
    assert found.cpt50[0] == pytest.approx(1 / 8)
    assert found.cpt80[0] == pytest.approx(1 / 5)
    reverse = ranking(-gain, gain, ALONE)
    assert reverse.apgr[0] == pytest.approx(1 / 8)


def test_apgr_agrees_with_sending_call_by_call() -> None:
    """Against the definition written out: a loop over k strong calls."""
    score = RNG.random(N)
    order = np.argsort(-score)
    pgr = [0.0]
    for k in range(1, N + 1):
        pgr.append(GAIN[order[:k]].sum() / GAIN.sum())
    assert ranking(score, GAIN, ALONE).apgr[0] == pytest.approx(np.trapezoid(pgr, dx=1 / N))


def test_without_a_gap_nothing_is_claimed() -> None:
    """A strong backend that is no better leaves APGR undefined."""
    assert Figure.of(ranking(RNG.random(N), np.zeros(N), ALONE).apgr) == Figure(None, None, None)


def test_groups_widen_intervals() -> None:
    """Twenty copies of each row are not twenty times the evidence."""
    score = RNG.random(N)
    alone = Figure.of(ranking(score, GAIN, ALONE).apgr)
    copied = Figure.of(ranking(np.tile(score, 20), np.tile(GAIN, 20), np.tile(ALONE, 20)).apgr)
    assert alone.low is not None
    assert copied.low is not None
    assert copied.low == pytest.approx(alone.low, abs=0.03)


def test_area_is_one_for_the_oracle_and_nil_for_chance() -> None:
    """The oracle against itself is 1; a score of noise is about 0; prediction lies between."""
    noise, hint = RNG.random(N), 0.6 * SCORES + 0.4 * RNG.random((N, 2))
    price = COSTS[:1]
    curves = cost_curves(
        {
            "oracle": by_merit(SCORES, COSTS, SCORES, COSTS),
            "hint": by_merit(hint, price, SCORES, COSTS),
            "noise": by_threshold(noise, SCORES, COSTS),
        },
        SCORES,
        COSTS,
        ALONE,
    )
    assert curves.area("oracle")[0] == pytest.approx(1.0)
    assert abs(curves.area("noise")[0]) < 0.2
    assert 0.5 < curves.area("hint")[0] < 1.0
    assert curves.share_for("oracle", 0.95)[0] < curves.share_for("single", 0.95)[0]


def test_the_control_mixes_the_best_singles() -> None:
    """A dominated backend does not weaken the control: it lies on the hull of the others."""
    scores = np.column_stack([np.full(N, 0.2), np.full(N, 0.1), np.full(N, 0.8)])
    costs = np.tile([0.0, 0.5, 1.0], (N, 1))
    oracle = by_merit(scores, costs, scores, costs)
    curves = cost_curves({"oracle": oracle}, scores, costs, ALONE)
    assert curves.quality["single"][0][50] == pytest.approx(0.5)
