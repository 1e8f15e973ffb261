"""The form of a question: word triples, how it begins and ends, its numbers and what joins them.

Small models fail by form, not by topic: 3 + 4 is no harder for its words than 38 + 84 is. Words and
pairs (`vectorise.py`) know a number by its length alone; here stand its value, where that is small,
its first and last digits, its neighbours, and which lengths stand before and after a sign.
Only the outputs about quality read forms; tasks do not. The same code trains the head and runs it.
"""

from itertools import pairwise
from math import sqrt
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gateway.routing.vectorise import LONG, NORM
from gateway.routing.words import NUMBER, WORD_CHARS, Hashes, Text, buckets, distinct

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
_THIRD = np.uint32(0x27D4EB2F)
_UINT32 = np.dtype("<u4")
_Forms = tuple[list[bytes], int, int]
"""Forms, the first token that they span, one beyond the last."""


def form_rows(text: Text) -> Hashes:
    """The buckets of a text's forms, each once, ascending."""
    others = [crc32(form) for forms, *_ in _others(text) for form in forms]
    hashes = np.concatenate((_triples(text), np.array(others, dtype=np.uint32)))
    return distinct(buckets(hashes, BITS))


def form_spans(text: Text) -> list[tuple[int, int, int]]:
    """(bucket, first token, one beyond the last) of each form: what `moved.py` shares out."""
    last = len(text.places)
    found = [
        (bucket, max(0, start - 1), min(last, start + 2))
        for start, bucket in enumerate(buckets(_triples(text), BITS).tolist())
    ]
    for forms, start, stop in _others(text):
        hashes = np.array(list(map(crc32, forms)), dtype=np.uint32)
        found += [(bucket, start, stop) for bucket in buckets(hashes, BITS).tolist()]
    return found


def form_weights(count: int) -> NDArray[np.float32]:
    """What each of a text's forms counts: as `vectorise.scaled` has it, of equal rarities."""
    return np.full(count, RARITY / NORM / max(1.0, RARITY * sqrt(count) / LONG), dtype=np.float32)


def _triples(text: Text) -> Hashes:
    """[T] of each token with its neighbours."""
    return np.asarray(text.pairs[:-1] ^ (text.ids[2:] * _THIRD))


def _others(text: Text) -> list[_Forms]:
    count = len(text.places)
    start = text.ids[1 : 1 + max(OPENINGS)].astype(_UINT32).tobytes()
    end = text.ids[max(1, count + 1 - max(ENDINGS)) : -1].astype(_UINT32).tobytes()
    found: list[_Forms] = [
        ([b"open" + start[: 4 * size]], 0, min(size, count)) for size in OPENINGS
    ]
    found += [([b"end" + end[-4 * size :]], max(0, count - size), count) for size in ENDINGS]
    numbers = text.known[:, NUMBER].nonzero()[0].tolist() if text.sums[NUMBER] else []
    lengths = "|".join([str(len(text.token(place))) for place in numbers[:PAIRED]])
    found.append(([f"lengths {lengths} of {min(len(numbers), 9)}".encode()], 0, count))
    for place in numbers[:NUMBERS]:
        before = _plain(text.token(place - 1)) if place else ""
        after = _plain(text.token(place + 1)) if place + 1 < count else ""
        found.append((_of_number(before, text.token(place), after), place, place + 1))
    for one, two in pairwise(numbers[:PAIRED]):
        joint = " ".join(map(_plain, text.cut(one + 1, two))) if two - one <= NEAR else ".."
        found.append((_of_pair(text.token(one), joint, text.token(two)), one, two + 1))
    return found


def _of_number(before: str, number: str, after: str) -> list[bytes]:
    size = len(number)
    forms = [f"first {size} {number[0]}".encode(), f"last {size} {number[-1]}".encode()]
    if size <= VALUED:
        forms.append(f"value {number}".encode())
    if size < VALUED:
        forms.append(f"after {before} {number}".encode("utf-8", "surrogatepass"))
        forms.append(f"before {number} {after}".encode("utf-8", "surrogatepass"))
    return forms


def _of_pair(a: str, joint: str, b: str) -> list[bytes]:
    near = f"sizes {len(a)} {joint} {len(b)}".encode("utf-8", "surrogatepass")
    alone = f"sizes {len(a)}  {len(b)}".encode()
    firsts = f" {a[0]} {b[0]}".encode()
    forms = [near, near + firsts, alone, alone + firsts]
    if max(len(a), len(b)) < VALUED:
        forms.append(f"both {a} {joint} {b}".encode("utf-8", "surrogatepass"))
    return forms


def _plain(token: str) -> str:
    """As words are told apart: numbers by their length."""
    return "0" * min(len(token), 6) if token[0].isdecimal() else token[:WORD_CHARS]
