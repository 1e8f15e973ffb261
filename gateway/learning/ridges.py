"""Ridges of the second head: P(a backend answers well) and gains of dearer backends, calibrated.

A backend's output becomes a probability by a sigmoid with fitted slope and offset (temperature and
bias); a gain, the dearer backend's score minus the cheapest one's, is predicted directly and shrunk
to what holds out of fold. The quality of a dearer backend is the mean of both views: its own
probability, and the cheapest one's plus the gain.
"""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.learning.design import Matrix
from gateway.learning.outcomes import Outcomes
from gateway.learning.quality import fold_of

Floats = NDArray[np.float64]
ALPHAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
NEWTON_STEPS = 50
STEEPEST = 1.5
"""Times the slope that a least-squares output has by itself: more would be blowing up noise."""


class Calibration(Struct, frozen=True):
    """From raw outputs to probabilities and gains."""

    slope: Floats
    offset: Floats
    """[K + K − 1] each: a sigmoid's for the backends, a straight line's for the gains."""

    def __call__(self, raw: Floats) -> tuple[Floats, Floats]:
        """(quality [N, K], direct gains [N, K − 1])."""
        line = raw * self.slope + self.offset
        backends = (raw.shape[1] + 1) // 2
        own = 1 / (1 + np.exp(-line[:, :backends]))
        gains = np.clip(line[:, backends:], -1, 1)
        quality = own.copy()
        quality[:, 1:] = np.clip((own[:, 1:] + own[:, :1] + gains) / 2, 0, 1)
        return quality, gains


class Linear:
    """One linear output per target: x @ weights + bias."""

    def __init__(self, weights: NDArray[np.float32], bias: NDArray[np.float64]) -> None:
        self.weights = weights
        """[R + D, targets]"""
        self.bias = bias
        """[targets]"""

    def __call__(self, x: Matrix) -> NDArray[np.float64]:
        """[N, targets]"""
        return np.asarray(x @ self.weights, dtype=np.float64) + self.bias


def ridge(x: Matrix, targets: NDArray[np.float64], alphas: NDArray[np.float64]) -> Linear:
    """Least squares with an L2 penalty, one strength per target; rows without a target are NaN."""
    from sklearn.linear_model import Ridge

    used = np.flatnonzero(np.diff(x.tocsc().indptr))  # most buckets are empty
    part = x[:, used]
    weights = np.zeros((x.shape[1], targets.shape[1]), dtype=np.float32)
    bias = np.zeros(targets.shape[1])
    known = ~np.isnan(targets)
    for rows in np.unique(known, axis=1).T:
        columns = np.flatnonzero((known == rows[:, None]).all(0))
        model = Ridge(alpha=alphas[columns], solver="sparse_cg", tol=1e-3)
        model.fit(part[rows], targets[np.ix_(rows, columns)])
        weights[np.ix_(used, columns)] = np.reshape(model.coef_, (len(columns), -1)).T
        bias[columns] = model.intercept_
    return Linear(weights, bias)


def targets_of(outcomes: Outcomes) -> Floats:
    """[N, K + K − 1]: scores, then gains over the cheapest."""
    scores = outcomes.scores
    return np.concatenate([scores, scores[:, 1:] - scores[:, :1]], axis=1)


def strengths(x: Matrix, targets: Floats, groups: NDArray[np.int64]) -> Floats:
    """The penalty of each target with the least squared error on a fifth of the groups."""
    held = fold_of(groups, np.zeros(len(groups), dtype=bool), targets, 5) == 0
    errors = []
    for alpha in ALPHAS:
        said = ridge(x[~held], targets[~held], np.full(targets.shape[1], alpha))(x[held])
        errors.append(np.nanmean((said - targets[held]) ** 2, axis=0))
    least = np.argmin(np.nan_to_num(np.array(errors), nan=np.inf), axis=0)
    return np.asarray(np.array(ALPHAS)[least])


def calibrate(raw: Floats, targets: Floats, backends: int) -> Calibration:
    """Slopes and offsets with the least loss; a gain whose slope is not positive says nothing."""
    slope, offset = np.zeros(targets.shape[1]), np.zeros(targets.shape[1])
    for index in range(targets.shape[1]):
        known = ~np.isnan(targets[:, index]) & ~np.isnan(raw[:, index])
        said, truth = raw[known, index], targets[known, index]
        if index < backends:
            slope[index], offset[index] = sigmoid_fit(said, truth, steepest=STEEPEST)
        elif len(said) and said.var() > 0:
            steep = float(np.cov(said, truth)[0, 1] / said.var(ddof=1))
            slope[index] = min(max(steep, 0.0), STEEPEST)
            offset[index] = truth.mean() - slope[index] * said.mean()
    return Calibration(slope, offset)


def sigmoid_fit(said: Floats, truth: Floats, *, steepest: float) -> tuple[float, float]:
    """Slope and offset of the sigmoid with the least log loss, slope within its bounds.

    Args:
        steepest: times 1 ÷ (p·(1 − p)), the slope at which the sigmoid follows a least-squares
            output of a target with mean p.

    Source: Platt 1999, "Probabilistic Outputs for Support Vector Machines".
    """
    room = 1 / (len(truth) + 2)
    goal = np.clip(truth, room, 1 - room)
    mean = float(goal.mean())
    limit = steepest / (mean * (1 - mean))
    slope = _newton(said, goal)[0]
    if 0 < slope < limit:
        return _newton(said, goal)
    slope = 0.0 if slope <= 0 else limit
    return slope, _newton(said, goal, slope=slope)[1]


def _newton(said: Floats, goal: Floats, *, slope: float | None = None) -> tuple[float, float]:
    """Minimise the log loss over (slope, offset), or over the offset alone."""
    x = np.stack([said, np.ones_like(said)], axis=1)
    free = np.array([slope is None, True])
    beta = np.array([slope or 0.0, 0.0])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -35, 35)))
        part = x[:, free]
        hessian = (part * (p * (1 - p))[:, None]).T @ part + 1e-6 * np.eye(part.shape[1])
        step = np.linalg.solve(hessian, part.T @ (p - goal))
        beta[free] -= np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-8:
            break
    return float(beta[0]), float(beta[1])


def calibrated(
    raw: Floats, targets: Floats, folds: NDArray[np.int64], fair: NDArray[np.bool_], backends: int
) -> tuple[Floats, Floats]:
    """Each fold through a calibration that was made without its targets, on the fair rows."""
    quality = np.full((len(raw), backends), np.nan)
    gains = np.full((len(raw), backends - 1), np.nan)
    for fold in np.unique(folds):
        inside = folds == fold
        others = fair & ~inside
        quality[inside], gains[inside] = calibrate(raw[others], targets[others], backends)(
            raw[inside]
        )
    return quality, gains
