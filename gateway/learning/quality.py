"""Fitting what a prompt says about each backend: P(it answers well), and what a dearer one gains.

All come out of one distribution over who passes together (`routing/together.py`), so a gain is a
difference of two of its probabilities and has less noise than two separate fits would leave. It is
calibrated by one slope, and an offset and a weight of the prompt's length per pattern, out of fold:
few rows teach a network little, but never less than that long prompts are hard, where they are.

Rows are also fitted with prefixes, suffixes and padding around the prompt, under the same scores:
words that anybody can put around any request must not move it.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.learning.confounders import disguised, dressed
from gateway.learning.design import Design, Matrix
from gateway.learning.network import Goal, Network, chances, fit_network, goals_of
from gateway.learning.outcomes import MIN_ROWS, Outcomes, OutcomesError
from gateway.routing.figures import softmax
from gateway.routing.together import MOST, Group, groups_of

Floats = NDArray[np.float64]
FOLDS = 5
LEAST_FAIR = 200
"""Rows that are no practice, to calibrate on them alone."""
EPOCHS = 4
DRESSES = 4
"""Disguises of each row that a head is fitted with."""
STEEPEST = 1.5
"""Times the slope that the fit has by itself: more would be blowing up noise."""
OFFSET_L2 = 0.5
"""Of the patterns' offsets, beside the loss added over all rows: rare patterns stay possible."""
LENGTH_L2 = 5.0
"""Of the weights of the standardised length."""


class Calibration(Struct, frozen=True):
    """From raw logits of patterns to those whose probabilities hold."""

    slope: Floats
    """[groups]"""
    offset: Floats
    """[P]"""
    length: Floats
    """[P], of the prompt's length as the design scales it."""
    groups: tuple[Group, ...]

    def __call__(self, raw: Floats, length: Floats) -> Floats:
        """Quality [N, K] of logits [N, P] and lengths [N]."""
        line = raw * self.slopes + self.offset + length[:, None] * self.length
        return chances(line, self.groups)

    @property
    def slopes(self) -> Floats:
        """[P], each group's at all of its patterns."""
        return np.repeat(self.slope, [group.stop - group.start for group in self.groups])


class Fitted(Struct, frozen=True):
    """A head's outputs with how they did out of fold."""

    network: Network
    calibration: Calibration
    quality: Floats
    """[N, K], each row by a head that has not seen its group."""
    folds: NDArray[np.int64]
    """[N]; frozen test rows have a fold of their own, the last."""
    disguised: dict[str, Floats]
    """Quality [N, K] of the same rows in disguise, likewise out of fold."""

    def only(self, rows: NDArray[np.bool_]) -> "Fitted":
        """Some of the rows, [N]."""
        return replace(
            self,
            quality=self.quality[rows],
            folds=self.folds[rows],
            disguised={kind: quality[rows] for kind, quality in self.disguised.items()},
        )


def grouped(backends: Sequence[str]) -> tuple[Group, ...]:
    """Neighbours by price together, at most `MOST` of them, in groups of about one size."""
    parts = np.array_split(np.arange(len(backends)), -(-len(backends) // MOST))
    return groups_of([[backends[place] for place in part] for part in parts])


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
    """Cross-validate, calibrate on what was out of fold, and fit the head on all but test rows.

    Raises:
        OutcomesError: test rows leave too little to fit on.
    """
    scores, together = outcomes.scores, grouped(outcomes.backends)
    folds = fold_of(groups, outcomes.test, scores, FOLDS)
    _check_left(outcomes, groups, folds)
    x = design.matrix(outcomes.prompts)
    hidden = [design.matrix(dressed(outcomes.prompts, seed=seed)) for seed in range(DRESSES)]
    gate = {kind: design.matrix(t) for kind, t in disguised(outcomes.prompts, gate=True).items()}
    raw = np.full((2, len(scores), together[-1].stop), np.nan)
    raw_gate = {kind: raw[0].copy() for kind in gate}
    network: Network | None = None
    for fold in [*range(FOLDS), FOLDS]:
        inside, outside = folds == fold, (folds != fold) & (folds != FOLDS)
        if fold != FOLDS and not inside.any():
            continue
        network = _fit(x, hidden, scores, np.flatnonzero(outside), together)
        if inside.any():
            raw[:, inside] = network(x[inside]), network(hidden[0][inside])
            for kind, matrix in gate.items():
                raw_gate[kind][inside] = network(matrix[inside])
    assert network is not None  # the last one: fitted on all rows that are not frozen
    # calibrated on rows like those that will come, where there are enough
    fair = (folds != FOLDS) & ~outcomes.practice
    if fair.sum() < LEAST_FAIR:
        fair = folds != FOLDS
    length = np.stack([design.length(x), design.length(hidden[0])])
    calibration = calibrate(raw[:, fair], scores[fair], together, length[:, fair])
    return Fitted(
        network=network,
        calibration=calibration,
        quality=calibrated(raw, scores, folds, fair, together, length),
        folds=folds,
        disguised={
            kind: calibration(part, design.length(gate[kind])) for kind, part in raw_gate.items()
        },
    )


def _check_left(outcomes: Outcomes, groups: NDArray[np.int64], folds: NDArray[np.int64]) -> None:
    left = folds != FOLDS
    if left.sum() < MIN_ROWS and not left.all():
        raise OutcomesError(
            f"{left.sum()} rows are left to fit on beside the test rows and those nearly the same "
            f"as one; at least {MIN_ROWS}: mark fewer as test, or add rows"
        )
    if len(np.unique(groups[left])) < 2:
        raise OutcomesError(
            "all prompts are nearly the same, so nothing can be fitted on some and tried on "
            "others; add other prompts"
        )
    unscored = np.flatnonzero(np.isnan(outcomes.scores[left]).all(axis=0))
    if len(unscored):
        names = ", ".join(repr(outcomes.backends[k]) for k in unscored)
        raise OutcomesError(
            f"no score of {names} is left to fit on beside the test rows; mark fewer as test, or "
            "remove those scores"
        )


def _fit(
    x: Matrix,
    hidden: Sequence[Matrix],
    scores: Floats,
    rows: NDArray[np.int64],
    groups: Sequence[Group],
) -> Network:
    """A head on rows as they are, and on each again in its disguises."""
    import scipy.sparse as sp  # type: ignore[import-untyped]

    parts = [x[rows], *(matrix[rows] for matrix in hidden)]
    told = np.tile(scores[rows], (len(parts), 1))
    return fit_network(sp.vstack(parts).tocsr(), told, groups, seen=parts[0], epochs=EPOCHS)


def calibrate(
    raw: Floats, scores: Floats, groups: tuple[Group, ...], length: Floats
) -> Calibration:
    """Slopes, offsets and weights with the least loss; a slope of 0 where the logits say nothing.

    Args:
        raw: [D, N, P], of the rows as they are, then of disguises: what length says must hold for
            these, too, or anybody could be long.
        length: [D, N], likewise.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", §4.2 (vector scaling with
    one temperature).
    """
    mean, spread = length[0].mean(), length[0].std() or 1.0
    z = (length - mean) / spread
    slopes, offsets, weights = [], [], []
    goals = goals_of(scores, groups), goals_of(np.tile(scores, (len(raw), 1)), groups)
    for (group, goal), (_, goals_of_all) in zip(*goals, strict=True):
        part = raw[..., group.start : group.stop]
        weight = _least(np.concatenate(part), z.ravel(), goals_of_all)[2]
        slope, offset, _ = _least(part[0], z[0], goal, weight)
        slopes.append(slope)
        weights.append(weight / spread)
        offsets.append(offset - weights[-1] * mean)
    return Calibration(np.array(slopes), np.concatenate(offsets), np.concatenate(weights), groups)


def _least(
    raw: Floats, z: Floats, goal: Goal, weight: Floats | None = None
) -> tuple[float, Floats, Floats]:
    """Slope, offsets and weights of the least loss; weights that are given stay what they are."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    patterns = raw.shape[1]
    free: list[tuple[float | None, float | None]] = [(None, None)] * patterns
    fixed = free if weight is None else [(one, one) for one in weight]
    bounds = [(0.0, STEEPEST), *free, *fixed]
    start = np.concatenate(([1.0], np.zeros(patterns), np.zeros(patterns)))
    if weight is not None:
        start[1 + patterns :] = weight
    found = minimize(_loss, start, args=(raw, z, goal), jac=True, bounds=bounds).x
    return float(found[0]), found[1 : 1 + patterns], found[1 + patterns :]


def _loss(line: Floats, raw: Floats, z: Floats, goal: Goal) -> tuple[float, Floats]:
    """Of a slope, offsets and weights of the length, [1 + 2 patterns]; and its gradient."""
    offset, weight = np.split(line[1:], 2)
    said = softmax(raw * line[0] + offset + z[:, None] * weight)
    error = said - goal(said)
    gradient = np.concatenate(
        (
            [(error * raw).sum()],
            error.sum(0) + 2 * OFFSET_L2 * offset,
            z @ error + 2 * LENGTH_L2 * weight,
        )
    )
    penalty = OFFSET_L2 * float(offset @ offset) + LENGTH_L2 * float(weight @ weight)
    return goal.loss(said) + penalty, gradient


def calibrated(
    raw: Floats,
    scores: Floats,
    folds: NDArray[np.int64],
    fair: NDArray[np.bool_],
    groups: tuple[Group, ...],
    length: Floats,
) -> Floats:
    """Each fold through a calibration that was made without its scores, on the fair rows."""
    quality = np.full(scores.shape, np.nan)
    for fold in np.unique(folds):
        inside = folds == fold
        others = fair & ~inside
        found = calibrate(raw[:, others], scores[others], groups, length[:, others])
        quality[inside] = found(raw[0, inside], length[0, inside])
    return quality


def served(design: Design, fitted: Fitted) -> Network:
    """The network with the calibration folded in."""
    network, calibration = fitted.network, fitted.calibration
    slopes = calibration.slopes
    scale = np.concatenate([slopes, np.ones(len(network.bias) - len(slopes))])
    shift = np.concatenate([calibration.offset, np.zeros(len(network.bias) - len(slopes))])
    weights = (network.weights * scale).astype(np.float32)
    weights[design.length_column, : len(slopes)] += calibration.length.astype(np.float32)
    return Network(
        weights,
        (network.bias * scale + shift).astype(np.float32),
        (network.up * slopes).astype(np.float32),
    )
