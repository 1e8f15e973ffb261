"""Prompts as the gateway's head reads them: one sparse matrix, the same numbers as when serving."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.routing.classifier import Head
from gateway.routing.forms import BITS, form_rows, form_weight
from gateway.routing.vectorise import Rows, Vectoriser, WordVectors, counts, scaled, tokens_of

DENSE_SCALE = 0.3
"""Keeps the counts and the words' mean from outweighing the n-grams under one ridge."""
Matrix = Any
"""A scipy CSR matrix."""


class Design:
    """Makes the matrix [N, R + F + D] of a head: R hashed n-grams, F forms, D dense columns."""

    def __init__(self, head: Head) -> None:
        card = head.card
        self._head = head
        self._vectoriser = Vectoriser(
            card["bits"], trigrams=card["trigrams"], chars=tuple(card["chars"])
        )
        self.rows: int = 1 << int(card["bits"])
        self.sparse: int = self.rows + (1 << BITS)
        """R + F."""

    def matrix(self, prompts: Sequence[str]) -> Matrix:
        """[len(prompts), R + F + D] float32."""
        import scipy.sparse as sp  # type: ignore[import-untyped]

        head, vectoriser = self._head, self._vectoriser
        plain = matrix_of(prompts, vectoriser, head.idf, head.words, rows=self.rows)
        found = [form_rows(tokens, vectoriser.ids(tokens)) for tokens in map(tokens_of, prompts)]
        values = [np.full(len(rows), form_weight(len(rows)), np.float32) for rows in found]
        forms = _sparse(found, values, 1 << BITS)
        whole = sp.hstack([plain[:, : self.rows], forms, plain[:, self.rows :]])
        return whole.tocsr().astype(np.float32)


def matrix_of(
    prompts: Sequence[str],
    vectoriser: Vectoriser,
    idf: NDArray[np.float32],
    words: WordVectors,
    *,
    rows: int,
) -> Matrix:
    """[len(prompts), rows + D] float32: n-grams by rarity, [rows] idf; then the dense columns."""
    import scipy.sparse as sp

    places, values, dense = [], [], []
    for prompt in prompts:
        tokens = tokens_of(prompt)
        found = vectoriser.rows(tokens)
        places.append(found)
        values.append(scaled(idf[found]))
        dense.append(np.concatenate((counts(prompt, tokens), words.mean(tokens))))
    block = sp.csr_matrix(np.array(dense) * DENSE_SCALE)
    return sp.hstack([_sparse(places, values, rows), block]).tocsr().astype(np.float32)


def _sparse(places: Sequence[Rows], values: Sequence[NDArray[np.float32]], columns: int) -> Matrix:
    import scipy.sparse as sp

    ends = np.cumsum([0, *map(len, places)])
    return sp.csr_matrix(
        (np.concatenate(values), np.concatenate(places), ends), shape=(len(places), columns)
    )
