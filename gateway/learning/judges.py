"""Fitting judges: from what an answer's tokens said, and its question promised, to P(good).

For each backend and judge a logistic regression says how probably the answer is good, and one for
each dearer backend how probably that one's would be: an answer is worth replacing only where the
other is likelier to be good. Where the outcomes tell the answers' words, the judge `answer` is a
network that reads them (`readers.py`). Rows are the outcomes'; the question's promise is the one
out of fold, and so are the figures.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.learning.outcomes import Outcomes
from gateway.learning.quality import FOLDS
from gateway.learning.readers import fit_readers
from gateway.routing.figures import auc, expected_calibration_error
from gateway.routing.judges import (
    Calibration,
    Judges,
    Reader,
    Signals,
    Spread,
    features_of,
)

Floats = NDArray[np.float64]
L2 = 3.0
NEWTON_STEPS = 25
LEAST_ROWS = 40
"""Fewer judged answers of one backend calibrate nothing."""
POINTS = 24
"""Of a spread."""
LEAST_LOGIT = 1e-3
TOKEN_SIGNALS = {"logprob": ("logprob",), "margin": ("margin",), "entropy": ("entropy",)}


class Judged(Struct, frozen=True):
    """Judges with how they did out of fold."""

    judges: Judges
    p_good: dict[str, Floats]
    """By judge, [N, K]: that backend k's answer is good; NaN: not judged."""
    p_above: dict[str, Floats]
    """By judge, [N, K, K]: that dearer backend j's would be, once k has answered."""

    def only(self, rows: NDArray[np.bool_]) -> "Judged":
        """Some of the rows, [N]."""
        return replace(
            self,
            p_good={judge: said[rows] for judge, said in self.p_good.items()},
            p_above={judge: said[rows] for judge, said in self.p_above.items()},
        )


def fit_judges(outcomes: Outcomes, quality: Floats, folds: NDArray[np.int64], head: str) -> Judged:
    """Fit every judge for which the file has signals.

    Args:
        quality: [N, K], predicted from the question out of fold.
        folds: [N]; the last is the frozen test rows', which nothing is fitted on.
    """
    names = outcomes.backends
    found: dict[str, dict[str, Calibration]] = {name: {} for name in names}
    above: dict[str, dict[str, dict[str, Calibration]]] = {name: {} for name in names}
    p_good: dict[str, Floats] = {}
    p_above: dict[str, Floats] = {}
    for judge, k, x in _designs(outcomes, quality):
        p_good.setdefault(judge, np.full(outcomes.scores.shape, np.nan))
        p_above.setdefault(judge, np.full((*outcomes.scores.shape, len(names)), np.nan))
        for j in range(k, len(names)):
            truth = outcomes.scores[:, j]
            known = ~np.isnan(x).any(axis=1) & ~np.isnan(truth)
            if known.sum() < LEAST_ROWS:
                continue
            calibration, said = _cross_fit(x, truth, known, folds)
            p_above[judge][:, k, j] = said
            if j == k:
                p_good[judge][:, k] = said
                found[names[k]][judge] = calibration
            else:
                above[names[k]].setdefault(judge, {})[names[j]] = calibration
    read = fit_readers(outcomes, quality, folds)
    if read.readers:
        for table, said in ((p_above, read.said), (p_good, np.einsum("nkk->nk", read.said))):
            table["answer"] = np.where(np.isnan(said), table["answer"], said)
    judges = Judges(
        question=tuple(names),
        backends=found,
        above=above,
        readers=read.readers,
        layers=read.layers,
        spread=_spreads(found, above, quality, p_above, names),
        head=head,
        data_sha256=outcomes.sha256,
    )
    return Judged(judges, p_good, p_above)


def _spreads(
    found: Mapping[str, Mapping[str, Calibration]],
    above: Mapping[str, Mapping[str, Mapping[str, Calibration]]],
    quality: Floats,
    p_above: Mapping[str, Floats],
    names: Sequence[str],
) -> dict[str, dict[str, Spread]]:
    """From the verdicts out of fold: POINTS equal parts of the rows, by what became of P(good)."""
    spreads: dict[str, dict[str, Spread]] = {}
    promised = logits(quality)
    for k, name in enumerate(names):
        for judge in found[name]:
            said = logits(p_above[judge][:, k, :])
            others = [j for j, other in enumerate(names) if other in above[name].get(judge, {})]
            known = ~np.isnan(said[:, [k, *others]]).any(axis=1)
            moved = (said - promised)[known]
            if len(moved) < LEAST_ROWS:
                continue
            parts = np.array_split(moved[np.argsort(moved[:, k], kind="stable")], POINTS)
            points = np.array([part.mean(axis=0) for part in parts]).round(4)
            spreads.setdefault(name, {})[judge] = Spread(
                own=tuple(points[:, k].tolist()),
                above={names[j]: tuple(points[:, j].tolist()) for j in others},
            )
    return spreads


def logits(p: Floats) -> Floats:
    """Log-odds, finite also for 0 and 1."""
    p = np.clip(p, LEAST_LOGIT, 1 - LEAST_LOGIT)
    return np.asarray(np.log(p / (1 - p)))


def _designs(outcomes: Outcomes, quality: Floats) -> Iterator[tuple[str, int, Floats]]:
    """(judge, backend's place, features [N, F]); NaN where there is nothing to judge by."""
    signals = outcomes.signals
    judges = [judge for judge, needs in TOKEN_SIGNALS.items() if all(n in signals for n in needs)]
    if "logprob" in signals:
        judges.append("answer")
    judges += [name for name in signals if name not in (*TOKEN_SIGNALS, "tokens")]
    for judge in judges:
        for k in range(len(outcomes.backends)):
            rows = [_features(outcomes, quality, judge, row, k) for row in range(len(quality))]
            width = max((len(row) for row in rows), default=0)
            if width:
                x = [row or [math.nan] * width for row in rows]
                yield judge, k, np.array(x, dtype=np.float64)


def _features(outcomes: Outcomes, quality: Floats, judge: str, row: int, k: int) -> list[float]:
    """As `features_of` gives them when serving; empty: the answer was not judged."""
    signals = outcomes.signals

    def of(name: str, otherwise: float) -> float:
        return float(signals[name][row, k]) if name in signals else otherwise

    told: Signals | float
    if judge in (*TOKEN_SIGNALS, "answer"):
        told = Signals(
            logprob=of("logprob", 0.0),
            margin=of("margin", 0.0),
            entropy=of("entropy", 0.0),
            tokens=max(int(np.nan_to_num(of("tokens", 1.0), nan=1.0)), 1),
        )
        numbers = (told.logprob, told.margin, told.entropy)
    else:
        told = of(judge, math.nan)
        numbers = (told, told, told)
    if any(map(math.isnan, numbers)):
        return []
    return features_of(judge, told, quality[row].tolist())


def _cross_fit(
    x: Floats, truth: Floats, known: NDArray[np.bool_], folds: NDArray[np.int64]
) -> tuple[Calibration, Floats]:
    said = np.full(len(truth), np.nan)
    for fold in np.unique(folds[known]):
        inside = known & (folds == fold)
        outside = known & (folds != fold) & (folds != FOLDS)
        if outside.sum() >= LEAST_ROWS // 2:
            said[inside] = _sigmoid(x[inside], *logistic(x[outside], truth[outside]))
    weights, offset = logistic(x[known & (folds != FOLDS)], truth[known & (folds != FOLDS)])
    judged = ~np.isnan(said)
    area = auc(said[judged], truth[judged])
    error = expected_calibration_error(said[judged], truth[judged])
    calibration = Calibration(
        weights=tuple(np.round(weights, 6).tolist()),
        offset=round(offset, 6),
        rows=int(known.sum()),
        auc=None if area is None else round(area, 4),
        ece=round(float(error), 4),
    )
    return calibration, said


def logistic(x: Floats, truth: Floats) -> tuple[Floats, float]:
    """(weights, offset) of the least log loss with an L2 penalty on standardised features."""
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    z = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    penalty = np.full(z.shape[1], L2)
    penalty[-1] = 1e-6
    w = np.zeros(z.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        slope = z.T @ (p - truth) + penalty * w
        bend = (z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    weights = w[:-1] / scale
    return weights, float(w[-1] - weights @ mean)


def _sigmoid(x: Floats, weights: Floats, offset: float) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x @ weights + offset, -60, 60))))


def judges_card(judges: Judges) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """How good each judge is, by backend."""
    card = {}
    for backend, of in judges.backends.items():
        fits: dict[str, Calibration | Reader] = {**of}
        if backend in judges.readers:
            fits["answer"] = judges.readers[backend]
        if fits:
            card[backend] = {
                judge: {"rows": fit.rows, "auc": fit.auc, "ece": fit.ece}
                for judge, fit in fits.items()
            }
    return card
