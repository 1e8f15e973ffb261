"""Fitting what a prompt says about each backend: P(it answers well), and gains of dearer backends.

A backend's output becomes a probability by a sigmoid with fitted slope and offset (temperature and
bias); a gain, the dearer backend's score minus the cheapest one's, is predicted directly and shrunk
to what holds out of fold. The quality of a dearer backend is the mean of both views: its own
probability, and the cheapest one's plus the gain. Where each row knows who passed, all outputs
follow a softmax over who passes together, rather than the rows themselves; else each has a ridge of
its own strength.

Rows are also fitted with prefixes, suffixes and padding around the prompt, under the same scores:
words that anybody can put around any request must not move it.
"""

from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.learning.adam import fit
from gateway.learning.confounders import disguised, dressed
from gateway.learning.design import Design, Linear, Matrix, ridge
from gateway.learning.head_file import Outputs
from gateway.learning.outcomes import Outcomes
from gateway.routing.figures import softmax

Floats = NDArray[np.float64]
ALPHAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
FOLDS = 5
NEWTON_STEPS = 50
LEAST_FAIR = 200
"""Rows that are no practice, to calibrate on them alone."""
TEACHER_C = 3.0
"""One over the penalty of all rows together."""
EPOCHS = 6
MOST_PATTERNS = 16
DRESSES = 2
"""Disguises of each row that a head is fitted with."""
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


class Fitted(Struct, frozen=True):
    """A head's outputs with how they did out of fold."""

    linear: Linear
    calibration: Calibration
    alphas: Floats
    """Strengths of the ridges; empty where a teacher was followed."""
    quality: Floats
    """[N, K], each row by a head that has not seen its group."""
    gains: Floats
    """[N, K − 1], directly predicted, likewise."""
    folds: NDArray[np.int64]
    """[N]; frozen test rows have a fold of their own, the last."""
    disguised: dict[str, Floats]
    """Quality [N, K] of the same rows in disguise, likewise out of fold."""

    def only(self, rows: NDArray[np.bool_]) -> "Fitted":
        """Some of the rows, [N]."""
        return replace(
            self,
            quality=self.quality[rows],
            gains=self.gains[rows],
            folds=self.folds[rows],
            disguised={kind: quality[rows] for kind, quality in self.disguised.items()},
        )


def targets_of(outcomes: Outcomes) -> Floats:
    """[N, K + K − 1]: scores, then gains over the cheapest."""
    scores = outcomes.scores
    return np.concatenate([scores, scores[:, 1:] - scores[:, :1]], axis=1)


def fold_of(
    groups: NDArray[np.int64], test: NDArray[np.bool_], targets: Floats, folds: int
) -> NDArray[np.int64]:
    """A fold for each row, groups whole; a group with a frozen test row is tested as a whole.

    Folds get the same share of each pattern of scores: else a fold with more passes is predicted by
    a head that saw fewer, and out of fold even a constant looks worse than chance.
    """
    rng = np.random.default_rng(5)
    frozen = np.isin(groups, groups[test])
    names, sizes = np.unique(groups[~frozen], return_counts=True)
    first = np.unique(groups[~frozen], return_index=True)[1]
    pattern = np.nan_to_num(targets[~frozen][first], nan=-1.0).T
    order = np.lexsort((rng.random(len(sizes)), *pattern, -sizes))
    load = np.zeros(folds, dtype=np.int64)
    fold = np.full(len(groups), folds, dtype=np.int64)
    place = {}
    for index in order:  # the largest group first, into the emptiest fold
        place[names[index]] = int(load.argmin())
        load[load.argmin()] += sizes[index]
    for row in np.flatnonzero(~frozen):
        fold[row] = place[groups[row]]
    return fold


def fit_quality(design: Design, outcomes: Outcomes, groups: NDArray[np.int64]) -> Fitted:
    """Cross-validate, calibrate on what was out of fold, and fit the head on all but test rows."""
    targets = targets_of(outcomes)
    folds = fold_of(groups, outcomes.test, targets, FOLDS)
    x = design.matrix(outcomes.prompts)
    hidden = [design.matrix(dressed(outcomes.prompts, seed=seed)) for seed in range(DRESSES)]
    gate = {kind: design.matrix(t) for kind, t in disguised(outcomes.prompts, gate=True).items()}
    raw = np.full(targets.shape, np.nan)
    raw_gate = {kind: raw.copy() for kind in gate}
    linear: Linear | None = None
    alphas = np.zeros(0)
    for fold in [*range(FOLDS), FOLDS]:
        inside, outside = folds == fold, (folds != fold) & (folds != FOLDS)
        if fold != FOLDS and not inside.any():
            continue
        linear, alphas = _fit(x, hidden, targets, np.flatnonzero(outside), groups)
        if inside.any():
            raw[inside] = linear(x[inside])
            for kind, matrix in gate.items():
                raw_gate[kind][inside] = linear(matrix[inside])
    assert linear is not None  # the last one: fitted on all rows that are not frozen
    # calibrated on rows like those that will come, where there are enough
    fair = (folds != FOLDS) & ~outcomes.practice
    if fair.sum() < LEAST_FAIR:
        fair = folds != FOLDS
    calibration = calibrate(raw[fair], targets[fair], len(outcomes.backends))
    quality, gains = calibrated(raw, targets, folds, fair, len(outcomes.backends))
    return Fitted(
        linear=linear,
        calibration=calibration,
        alphas=alphas,
        quality=quality,
        gains=gains,
        folds=folds,
        disguised={kind: calibration(part)[0] for kind, part in raw_gate.items()},
    )


def _fit(
    x: Matrix, hidden: list[Matrix], targets: Floats, rows: NDArray[np.int64], groups: Any
) -> tuple[Linear, Floats]:
    """A head on rows as they are, and on each again in its disguises; strengths of the ridges."""
    import scipy.sparse as sp  # type: ignore[import-untyped]

    backends = (targets.shape[1] + 1) // 2
    parts = [x[rows], *(matrix[rows] for matrix in hidden)]
    every, told = sp.vstack(parts).tocsr(), np.tile(targets[rows], (len(parts), 1))
    soft = softened(every, told[:, :backends])
    if soft is None:
        alphas = strengths(x[rows], targets[rows], groups[rows])
        return ridge(every, told, alphas * len(parts)), alphas

    def link(raw: Floats) -> Floats:
        return np.hstack([_sigmoid(raw[:, :backends]), raw[:, backends:]])

    head = fit(every, soft, link=link, l2=_l2(len(told)), epochs=EPOCHS)
    return Linear(head.weights, head.bias.astype(np.float64)), np.zeros(0)


def softened(x: Matrix, scores: Floats) -> Floats | None:
    """[N, K + K − 1] targets of the rows as a teacher sees them, in place of passes and failures.

    The teacher is one softmax over which backends pass together: it knows that a question which a
    small model passes is mostly passed by a large one, too, so what it says of their differences
    has less noise than the rows themselves. None where that cannot be learnt: scores between 0 and
    1, rows on which not all were asked, one backend or very many.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", §2.
    """
    backends = scores.shape[1]
    if backends < 2 or not np.isin(scores, (0.0, 1.0)).all():
        return None
    pattern = scores.astype(np.int64) @ (1 << np.arange(backends))
    seen, place = np.unique(pattern, return_inverse=True)
    if not 1 < len(seen) <= MOST_PATTERNS:
        return None
    goal = np.eye(len(seen), dtype=np.float32)[place]
    teacher = fit(x, goal, link=softmax, l2=_l2(len(goal)), epochs=EPOCHS)
    passes = (seen[:, None] >> np.arange(backends)) & 1
    soft = np.asarray(softmax(teacher.logits(x)) @ passes, dtype=np.float64)
    return np.hstack([soft, soft[:, 1:] - soft[:, :1]])


def _l2(rows: int) -> float:
    return 1 / (TEACHER_C * rows)


def _sigmoid(raw: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-raw)))


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


def outputs_of(fitted: Fitted, backends: list[str]) -> Outputs:
    """The head's columns, with the calibration folded in."""
    bias = fitted.linear.bias * fitted.calibration.slope + fitted.calibration.offset
    return Outputs(
        backends=backends,
        weights=fitted.linear.weights * fitted.calibration.slope.astype(np.float32),
        bias=bias.astype(np.float32),
        over=backends[0] if len(backends) > 1 else None,
    )
