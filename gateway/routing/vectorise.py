"""A text to rows of its words and pairs, and to the mean of its words' vectors.

The same code trains the head and runs it.
"""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gateway.routing.words import Text, buckets, distinct

NORM = 25.0
"""Of the n-grams of a usual question, weighed by rarity: they are scaled by it."""
LONG = 60.0
"""From this norm on a text's n-grams share what they count."""


def gram_rows(text: Text, bits: int) -> NDArray[np.uint32]:
    """The buckets, of `2**bits`, of a text's tokens and pairs, each once, ascending."""
    return distinct(buckets(np.concatenate((text.ids[1:-1], text.pairs)), bits))


def scaled(rarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each n-gram of a text counts, [n-grams].

    Up to a few sentences that is its rarity alone, whatever else stands there: words around a
    question add to the sum, but take nothing from the question's own.
    """
    norm = sqrt(rarity @ rarity)
    return rarity / np.float32(NORM * max(1.0, norm / LONG))


class WordVectors:
    """Static vectors of common words, averaged over a text; rare words of the corpus weigh more.

    Args:
        words: W of them.
        vectors: [W, E] float32.
        weights: [W] float32.
    """

    def __init__(
        self, words: Sequence[str], vectors: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> None:
        self.weights = weights
        self.places = {word: place for place, word in enumerate(words, start=1)}
        """Of words in the table; 0 is for all others."""
        # the weight stands in a last column, so that one gather gives both sums
        known = np.concatenate([vectors * weights[:, None], weights[:, None]], axis=1)
        self._table = np.concatenate([np.zeros_like(known[:1]), known])

    def shares(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """[T, E]: what each token adds to the mean; zeros for unknown ones."""
        found = self._table.take(places, axis=0)
        return np.asarray(found[:, :-1] / (found[:, -1].sum() or 1.0), dtype=np.float32)

    def mean(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """[E] float32; zeros when no word is known."""
        total = np.add.reduce(self._table.take(places, axis=0))
        return np.asarray(total[:-1] / (total[-1] or 1.0), dtype=np.float32)


def load_words(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Words and vectors [W, E] out of a file of `python -m backends.word_vectors`."""
    with np.load(path, allow_pickle=False) as file:
        words = file["words"].tobytes().decode("utf-8").split("\n")
        return words, file["vectors"].astype(np.float32) * file["scale"]
