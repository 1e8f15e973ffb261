"""The network behind a head: patterns of passes, gaps in what is known, scores in between."""

import numpy as np
import pytest
import scipy.sparse as sp  # type: ignore[import-untyped]

from gateway.learning.network import Goal, chances, fit_network
from gateway.learning.quality import calibrate, grouped

ROWS = 600


def _fitted(x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    groups = grouped([f"b{place}" for place in range(scores.shape[1])])
    matrix = sp.csr_matrix(x.astype(np.float32))
    network = fit_network(matrix, scores, groups, seen=matrix, epochs=20, hidden=4)
    return np.asarray(chances(network(matrix), groups))


def test_what_passes_together_says_more_of_differences_than_the_rows_do() -> None:
    """Predicted gains are much nearer the truth than the gains that were seen."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(ROWS, 3))
    easy = 1 / (1 + np.exp(-2 * x[:, 0]))
    truth = np.stack([easy * 0.5, easy], axis=1)
    scores = (rng.random((ROWS, 1)) < truth).astype(float)  # who fails with luck fails with both
    said = _fitted(x, scores)
    gain, seen = truth[:, 1] - truth[:, 0], scores[:, 1] - scores[:, 0]
    assert ((said[:, 1] - said[:, 0] - gain) ** 2).mean() < ((seen - gain) ** 2).mean() / 5


def test_backends_that_were_not_asked_leave_the_others_as_they_are() -> None:
    """A gap says nothing: both backends are learnt from half of the rows each."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 2))
    truth = 1 / (1 + np.exp(-2 * x))
    scores = (rng.random((ROWS, 2)) < truth).astype(float)
    scores[::2, 0], scores[1::2, 1] = np.nan, np.nan
    assert np.abs(_fitted(x, scores) - truth).mean() < 0.09


def test_scores_in_between_are_shares_of_passes() -> None:
    """A constant 0.7 is predicted as 0.7, not rounded; so are five backends in two groups."""
    wanted = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    said = _fitted(np.ones((200, 1)), np.tile(wanted, (200, 1)))
    assert said == pytest.approx(np.tile(wanted, (200, 1)), abs=0.03)


def test_goals_are_posteriors_of_the_patterns() -> None:
    """Known backends fix their bits; the rest is split as the model says."""
    goal = Goal(np.array([[1.0, np.nan], [0.0, 1.0], [np.nan, np.nan]]))
    said = np.tile([0.1, 0.2, 0.3, 0.4], (3, 1))  # neither, first, second, both
    assert goal(said) == pytest.approx(
        np.array([[0, 1 / 3, 0, 2 / 3], [0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4]])
    )
    assert goal.loss(said) == pytest.approx(-np.log(0.6) - np.log(0.3) - np.log(1.0))


def test_calibration_gives_up_logits_that_say_nothing() -> None:
    """Where raw logits are noise, probabilities fall back to how often each passes."""
    rng = np.random.default_rng(4)
    groups = grouped(["a", "b"])
    scores = (rng.random((ROWS, 2)) < [0.2, 0.8]).astype(float)
    length = rng.normal(size=ROWS)
    calibration = calibrate(3 * rng.normal(size=(1, ROWS, 4)), scores, groups, length[None])
    assert calibration.slope[0] < 0.1
    said = calibration(3 * rng.normal(size=(ROWS, 4)), length)
    assert said.mean(0) == pytest.approx(scores.mean(0), abs=0.03)
    assert said.std(0).max() < 0.05


def test_length_counts_where_only_long_prompts_are_hard() -> None:
    """What the logits do not know, the calibration adds; where length says nothing, nothing."""
    rng = np.random.default_rng(6)
    groups = grouped(["a", "b"])
    length = rng.normal(5.0, 1.0, ROWS)
    scores = np.stack([length < 5.0, rng.random(ROWS) < 0.8], axis=1).astype(float)
    raw = rng.normal(size=(ROWS, 4))
    said = calibrate(raw[None], scores, groups, length[None])(raw, length)
    assert np.corrcoef(said[:, 0], -length)[0, 1] > 0.9
    assert said[:, 1].std() < 0.05
    # where disguises are as long as you like, length is no sign of anything
    hidden = np.stack([length, rng.permutation(length) + 4])
    robust = calibrate(np.stack([raw, raw]), scores, groups, hidden)
    assert np.abs(robust.length).max() < 0.5
    assert robust(raw, length)[:, 0].std() < said[:, 0].std() / 2
