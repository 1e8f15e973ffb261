"""Prompts as the gateway's head reads them: one sparse matrix, the same numbers as when serving."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.routing.classifier import Head
from gateway.routing.vectorise import Vectoriser, WordVectors, counts, scaled, tokens_of

DENSE_SCALE = 0.3
"""Keeps the counts and the words' mean from outweighing the n-grams under one ridge."""
Matrix = Any
"""A scipy CSR matrix."""


class Design:
    """Makes the matrix [N, R + D] of a head: R hashed n-grams, then D dense columns."""

    def __init__(self, head: Head) -> None:
        card = head.card
        self._head = head
        self._vectoriser = Vectoriser(
            card["bits"], trigrams=card["trigrams"], chars=tuple(card["chars"])
        )
        self.rows: int = 1 << int(card["bits"])

    def matrix(self, prompts: Sequence[str]) -> Matrix:
        """[len(prompts), R + D] float32."""
        head = self._head
        return matrix_of(prompts, self._vectoriser, head.idf, head.words, rows=self.rows)


def matrix_of(
    prompts: Sequence[str],
    vectoriser: Vectoriser,
    idf: NDArray[np.float32],
    words: WordVectors,
    *,
    rows: int,
) -> Matrix:
    """[len(prompts), rows + D] float32: n-grams by rarity, [rows] idf; then the dense columns."""
    import scipy.sparse as sp  # type: ignore[import-untyped]

    places, values, dense = [], [], []
    for prompt in prompts:
        tokens = tokens_of(prompt)
        found = vectoriser.rows(tokens)
        places.append(found)
        values.append(scaled(idf[found]))
        dense.append(np.concatenate((counts(prompt, tokens), words.mean(tokens))))
    ends = np.cumsum([0, *map(len, places)])
    sparse = sp.csr_matrix(
        (np.concatenate(values), np.concatenate(places), ends), shape=(len(prompts), rows)
    )
    block = sp.csr_matrix(np.array(dense) * DENSE_SCALE)
    return sp.hstack([sparse, block]).tocsr().astype(np.float32)


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
