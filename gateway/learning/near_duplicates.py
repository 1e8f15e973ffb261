"""Which prompts are nearly the same: they must stand in one fold, or a test measures memory.

A prompt becomes the set of its words and word pairs, without case, marks or accents of width.
MinHash finds candidate pairs, exact Jaccard similarity decides, and groups are closed: if a is near
b and b near c, all three share a group.

Source: Broder 1997, "On the resemblance and containment of documents".
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.7
"""Jaccard similarity from which two prompts count as the same."""
BANDS, ROWS = 24, 3
"""Of the signature: a pair of similarity 0.7 is a candidate with probability 0.99995."""
NEIGHBOURS = 100
"""Of a bucket compared with each of its members: templates fill buckets with thousands."""
MAX_SHINGLES = 2_000
_WORD = re.compile(r"\w+")
_PRIME = (1 << 31) - 1
Shingles = frozenset[int]


def groups(prompts: Sequence[str], *, threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """A group's number for each prompt; near-duplicates share one.

    Returns:
        [len(prompts)] int64, the index of the group's first prompt.
    """
    shingles = [_shingles(prompt) for prompt in prompts]
    parent = list(range(len(prompts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[Shingles, int] = {}
    unique: list[int] = []
    for index, found in enumerate(shingles):
        twin = first.setdefault(found, index)
        if twin == index:
            unique.append(index)
        parent[index] = twin
    for a, b in _candidates([shingles[index] for index in unique]):
        left, right = unique[a], unique[b]
        if root(left) != root(right) and _near(shingles[left], shingles[right], threshold):
            low, high = sorted((root(left), root(right)))
            parent[high] = low
    return np.array([root(index) for index in range(len(prompts))], dtype=np.int64)


def balanced_groups(prompts: Sequence[str], *, folds: int) -> tuple[NDArray[np.int64], float]:
    """Groups, none larger than a fold, and the similarity that was needed for that.

    Where all prompts share a long preamble, nearly all of them are nearly the same: the threshold
    then rises until the rest of the prompts tells them apart.
    """
    found = np.arange(len(prompts))
    for threshold in (THRESHOLD, 0.8, 0.9, 0.95, 1.0):
        found = groups(prompts, threshold=threshold)
        if np.bincount(found).max() <= max(1, len(prompts) // folds):
            return found, threshold
    return found, 1.0


def _shingles(prompt: str) -> Shingles:
    words = _WORD.findall(unicodedata.normalize("NFKC", prompt).casefold())[:MAX_SHINGLES]
    texts = [*words, *(f"{a} {b}" for a, b in pairwise(words))] or [prompt.strip()]
    return frozenset(crc32(text.encode("utf-8", "surrogatepass")) for text in texts)


def _near(a: Shingles, b: Shingles, threshold: float) -> bool:
    both = len(a & b)
    return both >= threshold * (len(a) + len(b) - both)


def _candidates(shingles: Sequence[Shingles]) -> set[tuple[int, int]]:
    """Pairs that agree in at least one band of their signatures."""
    rng = np.random.default_rng(7)
    factor = rng.integers(1, _PRIME, BANDS * ROWS, dtype=np.int64)
    shift = rng.integers(0, _PRIME, BANDS * ROWS, dtype=np.int64)
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, found in enumerate(shingles):
        ids = np.fromiter(found, dtype=np.int64, count=len(found)) % _PRIME
        signature = ((ids[:, None] * factor + shift) % _PRIME).min(0).reshape(BANDS, ROWS)
        for band in range(BANDS):
            buckets[band, signature[band].tobytes()].append(index)
    return {
        (a, b)
        for members in buckets.values()
        for place, a in enumerate(members)
        for b in members[place + 1 : place + 1 + NEIGHBOURS]
    }
