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

from gateway.routing.vectorise import LONG, NORM, Rows, buckets, distinct
from gateway.routing.words import NUMBER, WORD_CHARS, Text

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
_Span = tuple[int, int]
"""First token, one beyond the last."""


def form_rows(text: Text) -> Rows:
    """The buckets of a text's forms, each once, ascending."""
    forms, _ = _others(text)
    others = np.array(list(map(crc32, forms)), dtype=np.uint32)
    return distinct(buckets(np.concatenate((_triples(text.ids), others)), BITS))


def form_spans(text: Text) -> list[tuple[int, int, int]]:
    """(bucket, first token, one beyond the last) of each form: what `moved.py` shares out."""
    last = len(text.places)
    found = [
        (bucket, max(0, start - 1), min(last, start + 2))
        for start, bucket in enumerate(buckets(_triples(text.ids), BITS).tolist())
    ]
    forms, spans = _others(text)
    others = buckets(np.array(list(map(crc32, forms)), dtype=np.uint32), BITS).tolist()
    return found + [(bucket, *span) for bucket, span in zip(others, spans, strict=True)]


def form_weight(count: int) -> float:
    """What each of a text's forms counts: as `vectorise.scaled` has it, of equal rarities."""
    return RARITY / NORM / max(1.0, RARITY * sqrt(count) / LONG)


def _triples(ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """[T] of each token with its neighbours."""
    return np.asarray((ids[:-2] * _FIRST) ^ (ids[1:-1] * _SECOND) ^ (ids[2:] * _THIRD))


def _others(text: Text) -> tuple[list[bytes], list[_Span]]:
    """Forms, and the tokens that each spans."""
    ids, count = text.ids, len(text.places)
    start = ids[1 : 1 + max(OPENINGS)].astype("<u4").tobytes()
    end = ids[max(1, count + 1 - max(ENDINGS)) : -1].astype("<u4").tobytes()
    forms = [b"open" + start[: 4 * size] for size in OPENINGS]
    spans = [(0, min(size, count)) for size in OPENINGS]
    forms += [b"end" + end[-4 * size :] for size in ENDINGS]
    spans += [(max(0, count - size), count) for size in ENDINGS]
    numbers = (text.known[1:-1, NUMBER].nonzero()[0]).tolist()
    values = [text.cut(place, place + 1)[0] for place in numbers[:NUMBERS]]
    lengths = "|".join([str(len(value)) for value in values[:PAIRED]])
    forms.append(f"lengths {lengths} of {min(len(numbers), 9)}".encode())
    spans.append((0, count))
    for place, value in zip(numbers, values, strict=False):
        of = _of_number(text, place, value)
        forms += of
        spans += [(place, place + 1)] * len(of)
    for one, two in pairwise(numbers[:PAIRED]):
        of = _of_pair(text, one, two)
        forms += of
        spans += [(one, two + 1)] * len(of)
    return forms, spans


def _of_number(text: Text, place: int, number: str) -> list[bytes]:
    size = len(number)
    forms = [f"first {size} {number[0]}", f"last {size} {number[-1]}"]
    if size <= VALUED:
        forms.append(f"value {number}")
    if size < VALUED:
        before = _plain(text.cut(place - 1, place)) if place else ""
        after = _plain(text.cut(place + 1, place + 2))
        forms += (f"after {before} {number}", f"before {number} {after}")
    return [form.encode("utf-8", "surrogatepass") for form in forms]


def _of_pair(text: Text, one: int, two: int) -> list[bytes]:
    a, *between, b = text.cut(one, two + 1)
    joint = _plain(between) if two - one <= NEAR else ".."
    sizes = f"sizes {len(a)} {joint} {len(b)}"
    any_joint = f"sizes {len(a)}  {len(b)}"
    ends = f" {a[0]} {b[0]}"
    forms = [sizes, sizes + ends, any_joint, any_joint + ends]
    if max(len(a), len(b)) < VALUED:
        forms.append(f"both {a} {joint} {b}")
    return [form.encode("utf-8", "surrogatepass") for form in forms]


def _plain(tokens: list[str]) -> str:
    """As words are told apart: numbers by their length."""
    return " ".join(["0" * min(len(t), 6) if t[0].isdecimal() else t[:WORD_CHARS] for t in tokens])
