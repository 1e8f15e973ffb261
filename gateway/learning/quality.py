"""Fitting what a prompt says about each backend: P(it answers well), and what a dearer one gains.

All come out of one distribution over who passes together (`routing/together.py`), so a gain is a
difference of two of its probabilities and has less noise than two separate fits would leave. It is
calibrated by one slope and an offset per pattern, out of fold.

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
from gateway.learning.outcomes import Outcomes
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


class Calibration(Struct, frozen=True):
    """From raw logits of patterns to those whose probabilities hold."""

    slope: Floats
    """[groups]"""
    offset: Floats
    """[P]"""
    groups: tuple[Group, ...]

    def __call__(self, raw: Floats) -> Floats:
        """Quality [N, K] of logits [N, P]."""
        return chances(raw * self.slopes + self.offset, self.groups)

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
    """Cross-validate, calibrate on what was out of fold, and fit the head on all but test rows."""
    scores, together = outcomes.scores, grouped(outcomes.backends)
    folds = fold_of(groups, outcomes.test, scores, FOLDS)
    x = design.matrix(outcomes.prompts)
    hidden = [design.matrix(dressed(outcomes.prompts, seed=seed)) for seed in range(DRESSES)]
    gate = {kind: design.matrix(t) for kind, t in disguised(outcomes.prompts, gate=True).items()}
    raw = np.full((len(scores), together[-1].stop), np.nan)
    raw_gate = {kind: raw.copy() for kind in gate}
    network: Network | None = None
    for fold in [*range(FOLDS), FOLDS]:
        inside, outside = folds == fold, (folds != fold) & (folds != FOLDS)
        if fold != FOLDS and not inside.any():
            continue
        network = _fit(x, hidden, scores, np.flatnonzero(outside), together)
        if inside.any():
            raw[inside] = network(x[inside])
            for kind, matrix in gate.items():
                raw_gate[kind][inside] = network(matrix[inside])
    assert network is not None  # the last one: fitted on all rows that are not frozen
    # calibrated on rows like those that will come, where there are enough
    fair = (folds != FOLDS) & ~outcomes.practice
    if fair.sum() < LEAST_FAIR:
        fair = folds != FOLDS
    calibration = calibrate(raw[fair], scores[fair], together)
    return Fitted(
        network=network,
        calibration=calibration,
        quality=calibrated(raw, scores, folds, fair, together),
        folds=folds,
        disguised={kind: calibration(part) for kind, part in raw_gate.items()},
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


def calibrate(raw: Floats, scores: Floats, groups: tuple[Group, ...]) -> Calibration:
    """Slopes and offsets with the least loss; a slope of 0 where the logits say nothing.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", §4.2 (vector scaling with
    one temperature).
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    slopes, offsets = [], []
    for group, goal in goals_of(scores, groups):
        part = raw[:, group.start : group.stop]

        patterns = group.stop - group.start
        bounds = [(0.0, STEEPEST), *[(None, None)] * patterns]
        start = [1.0, *[0.0] * patterns]
        found = minimize(_loss, start, args=(part, goal), jac=True, bounds=bounds).x
        slopes.append(found[0])
        offsets.append(found[1:])
    return Calibration(np.array(slopes), np.concatenate(offsets), groups)


def _loss(line: Floats, raw: Floats, goal: Goal) -> tuple[float, Floats]:
    """Of a slope and offsets, [1 + patterns]; and its gradient."""
    said = softmax(raw * line[0] + line[1:])
    error = said - goal(said)
    gradient = np.concatenate(([(error * raw).sum()], error.sum(0) + 2 * OFFSET_L2 * line[1:]))
    return goal.loss(said) + OFFSET_L2 * float(line[1:] @ line[1:]), gradient


def calibrated(
    raw: Floats,
    scores: Floats,
    folds: NDArray[np.int64],
    fair: NDArray[np.bool_],
    groups: tuple[Group, ...],
) -> Floats:
    """Each fold through a calibration that was made without its scores, on the fair rows."""
    quality = np.full(scores.shape, np.nan)
    for fold in np.unique(folds):
        inside = folds == fold
        others = fair & ~inside
        quality[inside] = calibrate(raw[others], scores[others], groups)(raw[inside])
    return quality


def served(fitted: Fitted) -> Network:
    """The network with the calibration folded in."""
    network, calibration = fitted.network, fitted.calibration
    slopes = calibration.slopes
    scale = np.concatenate([slopes, np.ones(len(network.bias) - len(slopes))])
    shift = np.concatenate([calibration.offset, np.zeros(len(network.bias) - len(slopes))])
    return Network(
        (network.weights * scale).astype(np.float32),
        (network.bias * scale + shift).astype(np.float32),
        (network.up * slopes).astype(np.float32),
    )
