"""Probabilities, and how good a head is: calibration, F1, area under the curve. NumPy only."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def log_odds(p: float, *, edge: float = 1e-6) -> float:
    """Of a probability, which is kept so far off 0 and 1."""
    p = min(max(p, edge), 1.0 - edge)
    return math.log(p / (1.0 - p))


def expected_calibration_error(
    confidence: NDArray[np.float64], hit: NDArray[np.bool_] | NDArray[np.float64], bins: int = 15
) -> float:
    """Mean distance of confidence from the share of hits, over equally wide bins."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for index in range(bins):
        inside = place == index
        if inside.any():
            total += inside.sum() * abs(confidence[inside].mean() - hit[inside].mean())
    return total / max(1, len(confidence))


def macro_f1(gold: Sequence[str], said: Sequence[str]) -> float:
    """Mean F1 over the classes that occur in gold."""
    scores = []
    for name in sorted(set(gold)):
        both = sum(g == s == name for g, s in zip(gold, said, strict=True))
        either = sum(g == name for g in gold) + sum(s == name for s in said)
        scores.append(2 * both / either if either else 0.0)
    return float(np.mean(scores))


def auc(scores: NDArray[np.float64], truth: NDArray[np.float64]) -> float | None:
    """P(a pass is ranked above a fail), ties counting half; None without both."""
    hit = truth >= 0.5
    if hit.all() or not hit.any():
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    passes = hit.sum()
    above = ranks[hit].sum() - passes * (passes + 1) / 2
    return float(above / (passes * (len(hit) - passes)))
