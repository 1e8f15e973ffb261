"""Text to hashed n-gram rows and cheap counts. The same code trains the head and runs it.

A text is lower-cased and cut into words, digit runs and single marks; at most the first and the
last `WINDOW` of them are read. Rows are buckets of word 1-, 2- and 3-grams and of the character
n-grams inside words.
"""

import re
import sys
from array import array
from collections.abc import Sequence
from math import log1p
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

WINDOW = 128
"""Tokens read at the start, and at the end."""
CHARS = 800
"""Characters looked at for each window, so that the cost has a bound."""
WORD_CHARS = 20
NORM = 25.0
"""Of the n-grams of a usual question, weighed by rarity: they are scaled by it."""
LONG = 60.0
"""From this norm on a text's n-grams share what they count."""
MAX_WORDS = 50_000
"""Words whose hashes are remembered; then memory starts over."""

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_|\n")
_SHIFTS = {
    "uni": np.uint32(0x9E3779B1),
    "left": np.uint32(0x85EBCA77),
    "right": np.uint32(0xC2B2AE3D),
    "third": np.uint32(0x27D4EB2F),
}


def _native(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


_START, _END = _native(crc32(b"\x02")), _native(crc32(b"\x03"))

Rows = NDArray[np.int64]


def tokens_of(text: str) -> list[str]:
    """The tokens that are read: lower-cased, numbers as their length."""
    if len(text) > 2 * CHARS:
        words = _TOKEN.findall(text[:CHARS].lower())[:WINDOW]
        words += _TOKEN.findall(text[-CHARS:].lower())[-WINDOW:]
        return words
    words = _TOKEN.findall(text.lower())
    return words if len(words) <= 2 * WINDOW else words[:WINDOW] + words[-WINDOW:]


class Vectoriser:
    """Hashes tokens into `2**bits` rows; remembers words it has seen.

    Args:
        bits: of the number of buckets.
        trigrams: also word 3-grams.
        chars: lengths of the character n-grams inside words; empty for none.
    """

    def __init__(self, bits: int, *, trigrams: bool = True, chars: Sequence[int] = ()) -> None:
        self._shift = np.uint32(32 - bits)
        self._trigrams = trigrams
        self._chars = tuple(chars)
        self._words: dict[str, tuple[bytes, bytes]] = {}
        """Token → its hash, and those of its character n-grams, as native uint32s."""

    def rows(self, tokens: Sequence[str], ids: NDArray[np.uint32] | None = None) -> Rows:
        """The buckets of a text, each once, ascending. `ids`: of the tokens, where known."""
        if ids is None:
            ids = self.ids(tokens)
        parts = [ids[1:-1] * _SHIFTS["uni"]]
        pairs = (ids[:-1] * _SHIFTS["left"]) ^ (ids[1:] * _SHIFTS["right"])
        parts.append(pairs * _SHIFTS["uni"])
        if self._trigrams:
            triples = (pairs[:-1] * _SHIFTS["third"]) ^ (ids[2:] * _SHIFTS["right"])
            parts.append(triples * _SHIFTS["uni"])
        if self._chars:
            inner = np.frombuffer(
                b"".join([pair[1] for pair in self._known(tokens)]), dtype=np.uint32
            )
            parts.append(inner * _SHIFTS["uni"])
        return distinct((np.concatenate(parts) >> self._shift).astype(np.int64))

    def ids(self, tokens: Sequence[str]) -> NDArray[np.uint32]:
        """[tokens + 2]: a hash of the start, of each token, and of the end."""
        ends = (_START, *[pair[0] for pair in self._known(tokens)], _END)
        return np.frombuffer(b"".join(ends), dtype=np.uint32)

    def places(self, tokens: Sequence[str]) -> tuple[Rows, Rows]:
        """The buckets of each token, and of each pair of neighbours; the ends count as tokens."""
        ids = self.ids(tokens)
        pairs = (ids[:-1] * _SHIFTS["left"]) ^ (ids[1:] * _SHIFTS["right"])
        single = (ids[1:-1] * _SHIFTS["uni"]) >> self._shift
        return single.astype(np.int64), (pairs * _SHIFTS["uni"] >> self._shift).astype(np.int64)

    def _known(self, tokens: Sequence[str]) -> list[tuple[bytes, bytes]]:
        known = self._words
        if len(known) > MAX_WORDS:
            known.clear()
        return [known.get(token) or self._learn(token) for token in tokens]

    def _learn(self, token: str) -> tuple[bytes, bytes]:
        word = "0" * min(len(token), 6) if token[0].isdigit() else token[:WORD_CHARS]
        inner: set[int] = set()
        if self._chars and len(word) > 2 and word[0].isalpha():
            marked = f"<{word}>"
            for length in self._chars:
                inner.update(
                    crc32(marked[i : i + length].encode("utf-8", "surrogatepass"), 7)
                    for i in range(len(marked) - length + 1)
                )
        pair = (
            _native(crc32(word.encode("utf-8", "surrogatepass"))),
            np.array(list(inner), dtype=np.uint32).tobytes(),
        )
        self._words[token] = pair
        return pair


def distinct(rows: Rows) -> Rows:
    """Each once, ascending; `rows` themselves are sorted. In half of `np.unique`'s time."""
    rows.sort()
    keep = np.ones(len(rows), dtype=bool)
    np.not_equal(rows[1:], rows[:-1], out=keep[1:])
    return rows[keep]


def scaled(rarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each n-gram of a text counts, [n-grams].

    Up to a few sentences that is its rarity alone, whatever else stands there: words around a
    question add to the sum, but take nothing from the question's own.
    """
    norm = float(np.sqrt(rarity @ rarity))
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
        self._place = {word: index for index, word in enumerate(words)}
        # the weight stands in a last column, so that one gather gives both sums
        self._table = np.concatenate([vectors * weights[:, None], weights[:, None]], axis=1)

    def shares(self, tokens: Sequence[str]) -> NDArray[np.float32]:
        """[tokens, E]: what each token adds to the mean; zeros for unknown ones."""
        found = np.zeros((len(tokens), self._table.shape[1]), dtype=np.float32)
        for index, token in enumerate(tokens):
            if token in self._place:
                found[index] = self._table[self._place[token]]
        return np.asarray(found[:, :-1] / (found[:, -1].sum() or 1.0), dtype=np.float32)

    def mean(self, tokens: Sequence[str]) -> NDArray[np.float32]:
        """[E] float32; zeros when no word is known."""
        places = [place for place in map(self._place.get, tokens) if place is not None]
        known = np.array(places, dtype=np.intp)
        total = np.add.reduce(self._table.take(known, axis=0))
        return np.asarray(total[:-1] / (total[-1] or 1.0), dtype=np.float32)


def load_words(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Words and vectors [W, E] out of a file of `python -m backends.word_vectors`."""
    with np.load(path, allow_pickle=False) as file:
        words = file["words"].tobytes().decode("utf-8").split("\n")
        return words, file["vectors"].astype(np.float32) * file["scale"]


COUNTS = (
    "log_chars", "log_tokens", "mean_word", "digit_share", "upper_share", "mark_share",
    "newlines", "questions", "question_end", "starts_question", "starts_order", "code_marks",
    "code_words", "brackets", "quotes", "commas", "colons", "operators", "numbers", "urls",
    "first_person", "second_person", "non_ascii", "list_lines", "repeats",
    "capitals", "starts_capital", "ends_stop", "ends_word",
)  # fmt: skip
"""Names of the cheap counts, in the order of `counts()`."""

_QUESTION = frozenset(
    "what who whom whose which when where why how is are was were do does did can could will "
    "would should has have had am".split()
)
_ORDER = frozenset(
    "write make give tell list find name describe explain create summarize summarise classify "
    "extract convert calculate compute show sort rewrite translate generate compose identify "
    "pick choose say repeat copy count reverse work solve draft implement fix debug refactor "
    "suggest brainstorm invent imagine label tag condense shorten outline".split()
)
_CODE_WORD = frozenset(
    "def return import class function print lambda const var let public static void null none "
    "true false elif else for while if int str self sql select from where select html css "
    "python javascript java rust golang typescript bash regex api json code program script "
    "compile traceback exception".split()
)
_CODE_MARKS = ("==", "!=", "->", "=>", "()", "</", "/>", "::", "++", "&&", "||", "#include", "):")
_LINE_MARK = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s")
_FIRST = frozenset("i my me im mine we our us".split())
_SECOND = frozenset("you your yours u ya".split())


def counts(text: str, tokens: Sequence[str]) -> NDArray[np.float32]:
    """The cheap counts of a text, [len(COUNTS)] float32, roughly in 0..4."""
    sample = text if len(text) <= 2 * CHARS else text[:CHARS] + text[-CHARS:]
    data = np.frombuffer(sample.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    of = np.bincount(data, minlength=256).tolist()
    size = max(1, len(data))
    total = max(1, len(tokens))
    words = list(filter(str.isalpha, tokens))
    digits = sum(map(str.isdecimal, tokens))
    first = words[0] if words else ""
    last = sample.rstrip()[-1:]
    distinct = set(tokens)
    bag = distinct.intersection

    def seen(marks: bytes) -> int:
        return sum(of[mark] for mark in marks)

    values = (
        log1p(len(text)) / 2,
        log1p(total) / 2,
        min(4.0, sum(map(len, words)) / max(1, len(words)) / 4),
        4 * sum(of[48:58]) / size,
        4 * sum(of[65:91]) / size,
        4 * (total - len(words) - digits) / total,
        min(4, of[10] / 2),
        min(3, of[63]),
        last == "?",
        first in _QUESTION,
        first in _ORDER,
        min(4.0, (seen(b"{};`$") + sum(map(sample.count, _CODE_MARKS))) / 2),
        min(4.0, len(bag(_CODE_WORD)) / 2),
        min(4.0, seen(b"([{") / 2),
        min(4.0, seen(b"\"'") / 2),
        min(4.0, of[44] / 3),
        min(4.0, of[58] / 2),
        min(4.0, seen(b"+*/=<>^%") / 2),
        min(4.0, digits / 2),
        min(2, sample.count("://")),
        min(2, len(bag(_FIRST))),
        min(2, len(bag(_SECOND))),
        4 * sum(of[128:]) / size,
        min(4.0, len(_LINE_MARK.findall(sample)) / 2) if of[10] else 0.0,
        2 * (1 - len(distinct) / total),
        min(4.0, sum(of[65:91]) / 2),
        sample[:1].isupper(),
        last == ".",
        last.isalnum(),
    )
    return np.frombuffer(
        array("f", values), dtype=np.float32
    )  # of mixed kinds: a third of np.array
