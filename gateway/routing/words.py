"""A text cut into words, digit runs and single marks, with what is known of each of them.

A text is lower-cased; at most the first and the last `WINDOW` tokens are read. Which tokens a run
of non-blanks holds, and all that is known of a token, is remembered: a run that was seen before
costs one look into a dict, and the rest of the reading is arithmetic on columns.
"""

import re
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from zlib import crc32

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

WINDOW = 128
"""Tokens read at the start, and at the end."""
CHARS = 500
"""Characters looked at for each window: hardly a prompt to fit heads on is longer than both."""
WORD_CHARS = 20
MAX_WORDS = 30_000
MAX_BYTES = 6_000_000
"""About what runs and tokens take that are remembered; beyond either, memory starts over."""

ONE, WORD, LETTERS, NUMBER, CODE, FIRST, SECOND, QUESTION, ORDER = COLUMNS = range(9)
"""What is known of a token, beside its hash and its vector: 1; whether it is of letters, and of how
many; whether it is of digits; whether it stands in the list so named."""
_LISTS = {
    CODE: "def return import class function print lambda const var let public static void null "
    "none true false elif else for while if int str self sql select from where html css python "
    "javascript java rust golang typescript bash regex api json code program script compile "
    "traceback exception",
    FIRST: "i my me im mine we our us",
    SECOND: "you your yours u ya",
    QUESTION: "what who whom whose which when where why how is are was were do does did can could "
    "will would should has have had am",
    ORDER: "write make give tell list find name describe explain create summarize summarise "
    "classify extract convert calculate compute show sort rewrite translate generate compose "
    "identify pick choose say repeat copy count reverse work solve draft implement fix debug "
    "refactor suggest brainstorm invent imagine label tag condense shorten outline",
}
_LISTED = {column: frozenset(words.split()) for column, words in _LISTS.items()}

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_|\n")
_PLACE = np.dtype(np.int64).itemsize
_START, _END = (place.to_bytes(_PLACE, sys.byteorder) for place in (0, 1))
_ENTRY = 200
"""Bytes of a remembered run beside its characters and places."""
_LEFT, _RIGHT = np.uint32(0x85EBCA77), np.uint32(0xC2B2AE3D)
_MIX = np.uint32(0x9E3779B1)
_ONES = np.ones(2 * WINDOW, dtype=np.float32)
Hashes = NDArray[np.uint32]


def tokens_of(text: str) -> list[str]:
    """The tokens that are read, lower-cased: what `Words.read` finds, without memory."""
    if len(text) > 2 * CHARS:
        words = _TOKEN.findall(text[:CHARS].lower())[:WINDOW]
        words += _TOKEN.findall(text[-CHARS:].lower())[-WINDOW:]
        return words
    words = _TOKEN.findall(text.lower())
    return words if len(words) <= 2 * WINDOW else words[:WINDOW] + words[-WINDOW:]


def buckets(hashes: Hashes, bits: int) -> Hashes:
    """Which of `2**bits` each falls into."""
    return np.asarray(hashes * _MIX >> np.uint32(32 - bits))


def distinct(found: NDArray[Any]) -> NDArray[Any]:
    """Each once, ascending; `found` themselves are sorted. In half of `np.unique`'s time."""
    found.sort()
    keep = np.ones(len(found), dtype=bool)
    np.not_equal(found[1:], found[:-1], out=keep[1:])
    return found[keep]


class Text(Struct, frozen=True, kw_only=True):
    """A text of T tokens."""

    sample: str
    """The characters that were looked at."""
    chars: int
    """Of the whole text."""
    places: NDArray[np.int64]
    """[T], into `names`: the same for the same token."""
    names: list[str]
    """Of all tokens that their `Words` know."""
    ids: Hashes
    """[T + 2], of the start, of each token, and of the end."""
    pairs: Hashes
    """[T + 1], of neighbours; the ends count as tokens."""
    vectors: NDArray[np.int64]
    """[T], places among the word vectors, 0 for none."""
    known: NDArray[np.float32]
    """[T, columns]"""
    sums: list[float]
    """[columns], over all tokens."""
    bag: list[float]
    """[columns], over the tokens, each once."""

    @property
    def tokens(self) -> list[str]:
        """All T of them."""
        return self.cut(0, len(self.places))

    def token(self, place: int) -> str:
        """The one at `place`."""
        return self.names[self.places.item(place)]

    def cut(self, start: int, stop: int) -> list[str]:
        """Tokens from `start` to before `stop`."""
        return list(map(self.names.__getitem__, self.places[start:stop].tolist()))


class _Runs(dict[str, bytes]):
    """The places of the tokens of runs; learns those it lacks."""

    def __init__(self, learn: Callable[[str], bytes]) -> None:
        self._learn = learn

    def __missing__(self, run: str) -> bytes:
        found = self[run] = self._learn(run)
        return found


class Words:
    """Reads texts; remembers the words it has seen.

    Args:
        vectors: places of words among word vectors, from 1 on.
    """

    def __init__(self, vectors: Mapping[str, int] = MappingProxyType({})) -> None:
        self._vectors = vectors
        # the last text before memory starts over may go beyond the bound
        size = MAX_WORDS + 2 * CHARS + 2
        self._ids = np.zeros(size, dtype=np.uint32)
        self._places = np.zeros(size, dtype=np.int64)
        self._known = np.zeros((size, len(COLUMNS)), dtype=np.float32)
        self._start_over()

    def read(self, text: str) -> Text:
        """Cut a text, and gather what is known of its tokens."""
        if len(self._names) > MAX_WORDS or self._bytes > MAX_BYTES:
            self._start_over()
        if len(text) > 2 * CHARS:
            head, tail = text[:CHARS], text[-CHARS:]
            sample = head + tail
            found = self._cut(head)[: WINDOW * _PLACE] + self._cut(tail)[-WINDOW * _PLACE :]
        else:
            sample, found = text, self._cut(text)
            if len(found) > 2 * WINDOW * _PLACE:
                found = found[: WINDOW * _PLACE] + found[-WINDOW * _PLACE :]
        ends = np.frombuffer(_START + found + _END, dtype=np.int64)
        places = ends[1:-1]
        ids, known = self._ids.take(ends), self._known.take(places, axis=0)
        once = distinct(places.copy())
        return Text(
            sample=sample,
            chars=len(text),
            places=places,
            names=self._names,
            ids=ids,
            pairs=(ids[:-1] * _LEFT) ^ (ids[1:] * _RIGHT),
            vectors=self._places.take(places),
            known=known,
            sums=(_ONES[: len(places)] @ known).tolist(),
            bag=(_ONES[: len(once)] @ self._known.take(once, axis=0)).tolist(),
        )

    def _start_over(self) -> None:
        self._runs = _Runs(self._learn)
        self._names: list[str] = []
        self._bytes = 0
        for end in ("\x02", "\x03"):
            self._add(end)

    def _cut(self, part: str) -> bytes:
        """The places of its tokens, one after the other."""
        lower = part.lower()
        if "\n" not in lower:
            return b"".join(map(self._runs.__getitem__, lower.split()))
        runs: list[str] = []
        for line in lower.split("\n"):  # the one blank that is a token
            runs += line.split()
            runs.append("\n")
        return b"".join(map(self._runs.__getitem__, runs[:-1]))

    def _learn(self, run: str) -> bytes:
        """The places of a new run's tokens; one that is a token itself gets a place."""
        one = run.isalpha() or run.isdecimal()
        tokens = [run] if one else _TOKEN.findall(run)
        if len(tokens) == 1:
            found = self._add(run)
        else:
            found = b"".join(map(self._runs.__getitem__, tokens))
        self._bytes += _ENTRY + 2 * len(run) + len(found)
        return found

    def _add(self, token: str) -> bytes:
        place = len(self._names)
        self._names.append(token)
        known = [0.0] * len(COLUMNS)
        known[ONE] = 1
        if token.isalpha():
            known[WORD], known[LETTERS] = 1, len(token)
            for column, listed in _LISTED.items():
                known[column] = token in listed
        known[NUMBER] = token.isdecimal()
        self._known[place] = known
        self._places[place] = self._vectors.get(token, 0)
        word = "0" * min(len(token), 6) if token[0].isdigit() else token[:WORD_CHARS]
        self._ids[place] = crc32(word.encode("utf-8", "surrogatepass"))
        return place.to_bytes(_PLACE, sys.byteorder)
