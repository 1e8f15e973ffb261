"""Cheap counts of a text: its size, marks, numbers, how it begins and ends."""

import re
from array import array
from math import log1p

import numpy as np
from numpy.typing import NDArray

from gateway.routing.words import (
    CODE,
    FIRST,
    LETTERS,
    NUMBER,
    ONE,
    ORDER,
    QUESTION,
    SECOND,
    WORD,
    Text,
)

COUNTS = (
    "log_chars", "log_tokens", "mean_word", "digit_share", "upper_share", "mark_share",
    "newlines", "questions", "question_end", "starts_question", "starts_order", "code_marks",
    "code_words", "brackets", "quotes", "commas", "colons", "operators", "numbers", "urls",
    "first_person", "second_person", "non_ascii", "list_lines", "repeats",
    "capitals", "starts_capital", "ends_stop", "ends_word",
)  # fmt: skip
"""Names of the cheap counts, in the order of `counts()`."""

_CODE_MARKS = {
    "=": ("==", "!=", "=>"),
    ">": ("->", "/>"),
    "<": ("</",),
    "(": ("()",),
    ":": ("::", "):"),
    "+": ("++",),
    "&": ("&&",),
    "|": ("||",),
    "#": ("#include",),
}
"""By a character that they need: most texts lack most of these."""
_LINE_MARK = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s")


def _kinds() -> bytes:
    """Bytes to what they are counted as: one of a kind stands for all of it."""
    table = bytearray(range(256))
    for kind in (b"0123456789", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"\"'", b";}`$", b"([", b"=+*/<>^%"):
        for byte in kind:
            table[byte] = kind[0]
    table[128:] = b"\xff" * 128
    return bytes(table)


_KINDS = _kinds()


def counts(text: Text) -> NDArray[np.float32]:
    """The cheap counts of a text, [len(COUNTS)] float32, roughly in 0..4."""
    sample = text.sample
    data = sample.encode("utf-8", "surrogatepass").translate(_KINDS)
    of = data.count
    size, total = max(1, len(data)), max(1, len(text.places))
    words, numbers, bag = text.sums[WORD], text.sums[NUMBER], text.bag
    first = text.known[text.known[:, WORD].argmax()].tolist() if words else bag
    upper, braces, lines = of(b"A"), of(b"{"), of(b"\n")
    last = sample.rstrip()[-1:]
    values = (
        log1p(text.chars) / 2,
        log1p(total) / 2,
        min(4.0, text.sums[LETTERS] / max(1, words) / 4),
        4 * of(b"0") / size,
        4 * upper / size,
        4 * (total - words - numbers) / total,
        min(4, lines / 2),
        min(3, of(b"?")),
        last == "?",
        first[QUESTION],
        first[ORDER],
        min(4.0, (braces + of(b";") + _code_marks(sample)) / 2),
        min(4.0, bag[CODE] / 2),
        min(4.0, (braces + of(b"(")) / 2),
        min(4.0, of(b'"') / 2),
        min(4.0, of(b",") / 3),
        min(4.0, of(b":") / 2),
        min(4.0, of(b"=") / 2),
        min(4.0, numbers / 2),
        min(2, sample.count("://")),
        min(2, bag[FIRST]),
        min(2, bag[SECOND]),
        4 * of(b"\xff") / size,
        min(4.0, len(_LINE_MARK.findall(sample)) / 2) if lines else 0.0,
        2 * (1 - bag[ONE] / total),
        min(4.0, upper / 2),
        sample[:1].isupper(),
        last == ".",
        last.isalnum(),
    )
    # of mixed kinds: a third of np.array
    return np.frombuffer(array("f", values), dtype=np.float32)


def _code_marks(sample: str) -> int:
    needed = [marks for mark, marks in _CODE_MARKS.items() if mark in sample]
    return sum([sample.count(mark) for marks in needed for mark in marks])
