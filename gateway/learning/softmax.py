"""Fitting a softmax over sparse rows, by Adam, in NumPy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.routing.figures import softmax

STEP = 0.05
BATCH = 512
Matrix = Any
"""A scipy CSR matrix, [rows, R + D]."""


class Weights(Struct):
    """One linear head: logits = X @ weights + bias."""

    weights: NDArray[np.float32]
    """[R + D, outputs]"""
    bias: NDArray[np.float32]
    """[outputs]"""

    def logits(self, x: Matrix) -> NDArray[np.float64]:
        """[rows, outputs]"""
        return np.asarray(x @ self.weights + self.bias, dtype=np.float64)


def fit_softmax(
    x: Matrix,
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    *,
    l2: float,
    epochs: int,
    seed: int = 0,
) -> Weights:
    """A linear head by Adam with a falling step.

    Args:
        x: [rows, R + D].
        targets: [rows, outputs], in 0..1; each row adds up to 1.
        weights: [rows], how much each row counts.
    """
    rng = np.random.default_rng(seed)
    head = Weights(
        np.zeros((x.shape[1], targets.shape[1]), np.float32),
        np.zeros(targets.shape[1], np.float32),
    )
    parameters = (head.weights, head.bias)
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
    steps = epochs * -(-x.shape[0] // BATCH)
    for step, rows in enumerate(_batches(x.shape[0], epochs, rng), start=1):
        part = x[rows]
        said = softmax(part @ head.weights + head.bias)
        shares = weights[rows, None] / len(rows)
        error = ((said - targets[rows]) * shares).astype(np.float32)
        gradients = (np.asarray(part.T @ error) + l2 * head.weights, error.sum(0))
        rate = STEP * (1 - step / steps) * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for value, (mean, square), gradient in zip(parameters, moments, gradients, strict=True):
            mean *= 0.9
            mean += 0.1 * gradient
            square *= 0.999
            square += 0.001 * gradient * gradient
            value -= np.float32(rate) * mean / (np.sqrt(square) + 1e-8)
    return head


def _batches(count: int, epochs: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    for _ in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count, BATCH):
            yield order[start : start + BATCH]
