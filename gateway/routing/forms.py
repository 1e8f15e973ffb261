"""The form of a question: word triples, how it begins and ends, its numbers and what joins them.

Small models fail by form, not by topic: 3 + 4 is no harder for its words than 38 + 84 is. Words and
pairs (`vectorise.py`) know a number by its length alone; here stand its value, where that is small,
its first and last digits, its neighbours, and which lengths stand before and after a sign.
Only the outputs about quality read forms; tasks do not. The same code trains the head and runs it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gateway.routing.vectorise import LONG, NORM, WORD_CHARS, Rows, distinct

BITS = 15
"""Of the number of buckets."""
RARITY = 5.0
"""Of each form, beside that of words and pairs."""
NUMBERS = 8
"""As many of a text are looked at."""
PAIRED = 4
VALUED = 3
"""Digits up to which a number stands for itself."""
NEAR = 4
"""Tokens between two numbers that are still one expression."""
OPENINGS, ENDINGS = (4, 6), (4,)
"""Tokens at the start and at the end that make one form."""
_FIRST, _SECOND, _THIRD = np.uint32(0x85EBCA77), np.uint32(0xC2B2AE3D), np.uint32(0x27D4EB2F)
_MIX = np.uint32(0x9E3779B1)


def form_rows(tokens: Sequence[str], ids: NDArray[np.uint32]) -> Rows:
    """The buckets of a text's forms, each once, ascending.

    Args:
        ids: of the tokens and the two ends, as `Vectoriser.ids` gives them.
    """
    others = np.array([crc32(form) for form, *_ in _others(tokens, ids)], dtype=np.uint32)
    return distinct(_buckets(np.concatenate((_triples(ids), others))))


def form_spans(tokens: Sequence[str], ids: NDArray[np.uint32]) -> list[tuple[int, int, int]]:
    """(bucket, first token, one beyond the last) of each form: what `moved.py` shares out."""
    last = len(tokens)
    found = [
        (bucket, max(0, start - 1), min(last, start + 2))
        for start, bucket in enumerate(_buckets(_triples(ids)).tolist())
    ]
    for form, start, stop in _others(tokens, ids):
        found.append((int(_buckets(np.array([crc32(form)], dtype=np.uint32))[0]), start, stop))
    return found


def form_weight(count: int) -> float:
    """What each of a text's forms counts: as `vectorise.scaled` has it, of equal rarities."""
    return RARITY / NORM / max(1.0, RARITY * sqrt(count) / LONG)


def _buckets(hashes: NDArray[np.uint32]) -> Rows:
    return (hashes * _MIX >> np.uint32(32 - BITS)).astype(np.int64)


def _triples(ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """[tokens] of each token with its neighbours."""
    return np.asarray((ids[:-2] * _FIRST) ^ (ids[1:-1] * _SECOND) ^ (ids[2:] * _THIRD))


def _others(tokens: Sequence[str], ids: NDArray[np.uint32]) -> Iterator[tuple[bytes, int, int]]:
    """(form, first token, one beyond the last)."""
    count = len(tokens)
    first, last = ids[1 : 1 + max(OPENINGS)], ids[max(1, len(ids) - 1 - max(ENDINGS)) : -1]
    start, end = first.astype("<u4").tobytes(), last.astype("<u4").tobytes()
    for size in OPENINGS:
        yield b"open" + start[: 4 * size], 0, min(size, count)
    for size in ENDINGS:
        yield b"end" + end[-4 * size :], max(0, count - size), count
    numbers = [place for place, token in enumerate(tokens) if token[0].isdecimal()]
    lengths = "|".join(str(len(tokens[place])) for place in numbers[:PAIRED])
    yield f"lengths {lengths} of {min(len(numbers), 9)}".encode(), 0, count
    for place in numbers[:NUMBERS]:
        yield from _of_number(tokens, place)
    for pair in pairwise(numbers[:PAIRED]):
        yield from _of_pair(tokens, *pair)


def _of_number(tokens: Sequence[str], place: int) -> Iterator[tuple[bytes, int, int]]:
    number, here = tokens[place], (place, place + 1)
    size = len(number)
    yield f"first {size} {number[0]}".encode(), *here
    yield f"last {size} {number[-1]}".encode(), *here
    if size <= VALUED:
        yield f"value {number}".encode(), *here
    if size < VALUED:
        before = _plain(tokens[place - 1]) if place else ""
        after = _plain(tokens[place + 1]) if place + 1 < len(tokens) else ""
        yield f"after {before} {number}".encode("utf-8", "surrogatepass"), *here
        yield f"before {number} {after}".encode("utf-8", "surrogatepass"), *here


def _of_pair(tokens: Sequence[str], one: int, two: int) -> Iterator[tuple[bytes, int, int]]:
    a, b, span = tokens[one], tokens[two], (one, two + 1)
    between = ".."
    if two - one <= NEAR:
        between = " ".join(map(_plain, tokens[one + 1 : two]))
    for joint in (between, ""):
        sizes = f"sizes {len(a)} {joint} {len(b)}"
        yield sizes.encode("utf-8", "surrogatepass"), *span
        yield f"{sizes} {a[0]} {b[0]}".encode("utf-8", "surrogatepass"), *span
    if max(len(a), len(b)) < VALUED:
        yield f"both {a} {between} {b}".encode("utf-8", "surrogatepass"), *span


def _plain(token: str) -> str:
    """As words are told apart: numbers by their length."""
    return "0" * min(len(token), 6) if token[0].isdecimal() else token[:WORD_CHARS]
