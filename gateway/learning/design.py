"""Prompts as the gateway's head reads them: one sparse matrix, the same numbers as when serving."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.routing.classifier import Head
from gateway.routing.counts import COUNTS, counts
from gateway.routing.forms import BITS, form_rows, form_weights
from gateway.routing.vectorise import WordVectors, gram_rows, scaled
from gateway.routing.words import Hashes, Text, Words

DENSE_SCALE = 0.3
"""Keeps the counts and the words' mean from outweighing the n-grams under one ridge."""
Matrix = Any
"""A scipy CSR matrix."""


class Design:
    """Makes the matrix [N, R + F + D] of a head: R hashed n-grams, F forms, D dense columns."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._bits = int(head.card["bits"])
        self.rows: int = 1 << self._bits
        self.sparse: int = self.rows + (1 << BITS)
        """R + F."""
        self.length_column = self.sparse + COUNTS.index("log_chars")

    def matrix(self, prompts: Sequence[str]) -> Matrix:
        """[len(prompts), R + F + D] float32."""
        import scipy.sparse as sp  # type: ignore[import-untyped]

        head = self._head
        texts = list(map(Words(head.words.places).read, prompts))
        plain = matrix_of(texts, self._bits, head.idf, head.words)
        found = list(map(form_rows, texts))
        values = [form_weights(len(rows)) for rows in found]
        forms = _sparse(found, values, 1 << BITS)
        whole = sp.hstack([plain[:, : self.rows], forms, plain[:, self.rows :]])
        return whole.tocsr().astype(np.float32)

    def length(self, matrix: Matrix) -> NDArray[np.float64]:
        """[N]: the prompts' lengths in a matrix, logarithms as it scales them."""
        return np.asarray(matrix[:, [self.length_column]].toarray()[:, 0], dtype=np.float64)


def matrix_of(
    texts: Iterable[Text], bits: int, idf: NDArray[np.float32], words: WordVectors
) -> Matrix:
    """[texts, R + D] float32: n-grams by rarity, [R] idf; then the dense columns."""
    import scipy.sparse as sp

    places, values, dense = [], [], []
    for text in texts:
        found = gram_rows(text, bits)
        places.append(found)
        values.append(scaled(idf[found]))
        dense.append(np.concatenate((counts(text), words.mean(text.vectors))))
    block = sp.csr_matrix(np.array(dense) * DENSE_SCALE)
    return sp.hstack([_sparse(places, values, 1 << bits), block]).tocsr().astype(np.float32)


def _sparse(
    places: Sequence[Hashes], values: Sequence[NDArray[np.float32]], columns: int
) -> Matrix:
    import scipy.sparse as sp

    ends = np.cumsum([0, *map(len, places)])
    return sp.csr_matrix(
        (np.concatenate(values), np.concatenate(places).astype(np.int64), ends),
        shape=(len(places), columns),
    )
