"""Fitting one linear head over sparse rows."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.learning.adam import Adam

STEP = 0.05
BATCH = 512
LEAST_STEPS = 200
"""As many on few rows as on many."""
Matrix = Any
"""A scipy CSR matrix or an array, [rows, R + D]."""
Link = Callable[[NDArray[Any]], NDArray[Any]]
"""From outputs to what the targets are compared with."""


class Weights(Struct):
    """One linear head: logits = X @ weights + bias."""

    weights: NDArray[np.float32]
    """[R + D, outputs]"""
    bias: NDArray[np.float32]
    """[outputs]"""

    def logits(self, x: Matrix) -> NDArray[np.float64]:
        """[rows, outputs]"""
        return np.asarray(x @ self.weights + self.bias, dtype=np.float64)


def fit(
    x: Matrix,
    targets: NDArray[np.floating[Any]],
    *,
    link: Link,
    l2: float,
    epochs: int,
    weights: NDArray[np.float32] | None = None,
    seed: int = 0,
) -> Weights:
    """A linear head by Adam with a falling step.

    Args:
        x: [rows, R + D].
        targets: [rows, outputs], what `link` should give.
        link: the one whose loss has the gradient said - target: softmax, sigmoid, the line itself.
        weights: [rows], how much each row counts; None: all alike.
    """
    rng = np.random.default_rng(seed)
    used = np.flatnonzero(np.asarray(abs(x).sum(0)).ravel())  # most buckets are empty
    part, count = x[:, used], x.shape[0]
    adam = Adam([np.zeros((len(used), targets.shape[1])), np.zeros(targets.shape[1])])
    linear, bias = adam.values
    a_pass = -(-count // BATCH)
    epochs = max(epochs, -(-LEAST_STEPS // a_pass))
    for step, rows in enumerate(_batches(count, epochs, rng), start=1):
        some = part[rows]
        share = (1.0 if weights is None else weights[rows, None]) / len(rows)
        error = (link(some @ linear + bias) - targets[rows]) * share
        error = error.astype(np.float32)
        gradients = (np.asarray(some.T @ error) + l2 * linear, error.sum(0))
        adam.step(gradients, STEP * (1 - step / (epochs * a_pass)))
    whole = np.zeros((x.shape[1], targets.shape[1]), np.float32)
    whole[used] = linear
    return Weights(whole, bias)


def _batches(count: int, epochs: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    for _ in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count, BATCH):
            yield order[start : start + BATCH]
