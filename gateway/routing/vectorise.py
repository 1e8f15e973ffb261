"""A text to rows of its words and pairs, and to the mean of its words' vectors.

The same code trains the head and runs it.
"""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.routing.words import Text, buckets, distinct

NORM = 25.0
"""Of the n-grams of a usual question, weighed by rarity: they are scaled by it."""
LONG = 60.0
"""From this norm on a text's n-grams share what they count."""
Floats = NDArray[np.float32]


def gram_rows(text: Text, bits: int) -> NDArray[np.uint32]:
    """The buckets, of `2**bits`, of a text's tokens and pairs, each once, ascending."""
    return distinct(buckets(np.concatenate((text.ids[1:-1], text.pairs)), bits))


def scaled(rarity: Floats) -> Floats:
    """What each n-gram of a text counts, [n-grams].

    Up to a few sentences that is its rarity alone, whatever else stands there: words around a
    question add to the sum, but take nothing from the question's own.
    """
    norm = sqrt(rarity @ rarity)
    return rarity / np.float32(NORM * max(1.0, norm / LONG))


class Table(Struct, frozen=True):
    """Rows as they are stored, in int8: a text gathers a few hundred of them."""

    codes: NDArray[np.int8]
    """[buckets, N]"""
    scale: Floats
    """[N], or one for all."""

    def take(self, rows: NDArray[np.integer[Any]]) -> Floats:
        """[rows, N]"""
        return self.codes.take(rows, axis=0) * self.scale

    def dot(self, weights: Floats, rows: NDArray[np.integer[Any]]) -> Floats:
        """[N]: the rows' sum, each times its weight [rows]."""
        return (weights @ self.codes.take(rows, axis=0).astype(np.float32)) * self.scale

    def whole(self) -> Floats:
        """[buckets, N]"""
        return self.codes * self.scale


class WordVectors:
    """Static vectors of common words, averaged over a text; rare words of the corpus weigh more.

    Args:
        words: W of them.
        vectors: [W, E]
        weights: [W] float32.
    """

    def __init__(self, words: Sequence[str], vectors: Table, weights: Floats) -> None:
        self.weights = weights
        self.places = {word: place for place, word in enumerate(words, start=1)}
        """Of words in the table; 0 is for all others."""
        self._weights = np.concatenate((np.zeros(1, np.float32), weights))
        unknown = np.zeros_like(vectors.codes[:1])
        self._vectors = Table(np.concatenate((unknown, vectors.codes)), vectors.scale)

    def shares(self, places: NDArray[np.int64]) -> Floats:
        """[T, E]: what each token adds to the mean; zeros for unknown ones."""
        return self._vectors.take(places) * self._shares(places)[:, None]

    def mean(self, places: NDArray[np.int64]) -> Floats:
        """[E] float32; zeros when no word is known."""
        return self._vectors.dot(self._shares(places), places)

    def _shares(self, places: NDArray[np.int64]) -> Floats:
        weights = self._weights.take(places)
        return weights / np.float32(weights.sum() or 1.0)


def load_words(path: Path) -> tuple[list[str], Table]:
    """Words and vectors [W, E] out of a file of `python -m backends.word_vectors`."""
    with np.load(path, allow_pickle=False) as file:
        words = file["words"].tobytes().decode("utf-8").split("\n")
        return words, Table(file["vectors"], file["scale"])
