"""Batches as a pure function of seed and step, so that a resumed run sees what it would have."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.bundled.config import TrainPlan
from backends.bundled.shelves import ANSWER, PROMPT, TEXT, Library
from backends.bundled.tokenizer import EOS_ID, PAD_ID

_CHATS: Final = {
    "turns": 0.3,
    "essays": 0.2,
    "math": 0.15,
    "summaries": 0.15,
    "extraction": 0.05,
    "docs": 0.05,
    "tasks": 0.1,
}
LONG_CHATS: Final = {"learn": _CHATS, "tune": {**_CHATS, "readings": 0.25}}
"""What the long rows hold beside text, by phase; the rows of the first are short for readings."""
SHORT_CHATS: Final = {
    "tasks": 0.74,
    "facts": 0.1,
    "docs": 0.06,
    "extraction": 0.03,
    "small_talk": 0.04,
    "trivia": 0.03,
}
TEXT_SHARE: Final = {"learn": 0.75, "tune": 0.4}
"""Share of the long rows that are running text, by phase."""
WEIGHTS: Final = {PROMPT: 0.0, ANSWER: 8.0, TEXT: 1.0}
"""What a token of each class counts in the loss; those of an answer share its weight, below."""
PICKED_SHARE: Final = 0.3
"""Room for answers in short rows, as a share of their tokens; the head looks at no others."""


class Rows(NamedTuple):
    """Rows of one length, as `weighted_loss` takes them."""

    ids: Tensor
    documents: Tensor
    weights: Tensor
    picked: Tensor | None
    positions: Tensor


_Document = tuple[NDArray[np.uint16], NDArray[np.uint8]]


class _Row:
    """A row being filled with whole documents."""

    def __init__(self, length: int) -> None:
        self.ids = np.full(length + 1, PAD_ID, dtype=np.int64)
        self.documents = np.full(length + 1, -1, dtype=np.int64)
        self.weights = np.zeros(length + 1, dtype=np.float32)
        self.used, self.count = 0, 0

    @property
    def room(self) -> int:
        return len(self.ids) - self.used

    def add(
        self, tokens: NDArray[np.uint16], kinds: NDArray[np.uint8], weights: NDArray[np.float32]
    ) -> None:
        """Append a document, cut to the room left; nothing predicts its first token."""
        size = min(len(tokens), self.room)
        here = slice(self.used, self.used + size)
        self.ids[here] = tokens[:size]
        self.documents[here] = self.count
        self.weights[here] = weights[kinds[:size]] / _answer_root(kinds)
        self.weights[self.used] = 0.0
        self.used, self.count = self.used + size, self.count + 1


def _answer_root(kinds: NDArray[np.uint8]) -> float:
    """Return the root of the number of answer tokens, at least one.

    Divided by it, a long answer still counts more than a short one, but does not drown it: else
    models learn the wording of word problems long before they learn to add.
    """
    return math.sqrt(max(1, int(np.count_nonzero(kinds == ANSWER))))


class Batcher:
    """Draws the batches of a run from a library."""

    def __init__(self, library: Library, plan: TrainPlan, *, seed: int) -> None:
        self.library, self.plan, self.seed = library, plan, seed

    def phase(self, step: int) -> str:
        """Say whether `step` still learns from everything or already tunes on answers."""
        return "tune" if step >= self.plan.steps * (1 - self.plan.tune_fraction) else "learn"

    def batch(self, step: int) -> list[Rows]:
        """Make the rows of one step: the long ones, then the short ones."""
        rng = np.random.default_rng((self.seed, step))
        phase, plan = self.phase(step), self.plan
        table = np.array([WEIGHTS[kind] for kind in (PROMPT, ANSWER, TEXT)], dtype=np.float32)
        length = plan.long_row if phase == "learn" else plan.tune_long_row
        count = plan.long_tokens // length
        texts = int(count * TEXT_SHARE[phase] + rng.random())  # a share of few rows, in the mean
        long_rows = [self._text_row(rng, length, table) for _ in range(texts)]
        long_rows += self._chat_rows(rng, count - texts, length, LONG_CHATS[phase], table)
        short_count = plan.short_tokens // plan.short_row
        short_rows = self._chat_rows(rng, short_count, plan.short_row, SHORT_CHATS, table)
        places = _skipping(rng, length, plan.context) if phase == "tune" else np.arange(length)
        return [
            _stack(long_rows, None, places),
            _stack(short_rows, PICKED_SHARE, np.arange(plan.short_row)),
        ]

    def _text_row(self, rng: np.random.Generator, length: int, table: NDArray[np.float32]) -> _Row:
        streams = list(self.library.streams.values())
        sizes = np.array([len(stream) for stream in streams], dtype=np.float64)
        stream = streams[rng.choice(len(streams), p=sizes / sizes.sum())]
        start = int(rng.integers(0, max(1, len(stream) - length - 1)))
        piece = stream[start : start + length + 1]
        row = _Row(length)
        for part in np.split(piece, np.flatnonzero(piece[:-1] == EOS_ID) + 1):
            row.add(part, np.full(len(part), TEXT, dtype=np.uint8), table)
        return row

    def _chat_rows(
        self,
        rng: np.random.Generator,
        count: int,
        length: int,
        shares: Mapping[str, float],
        table: NDArray[np.float32],
    ) -> list[_Row]:
        """Fill rows with chats; one that does not fit opens a later row, so none is favoured."""
        names, p = list(shares), np.array(list(shares.values())) / sum(shares.values())
        rows, waiting = [], deque[_Document]()
        for _ in range(count):
            row, misses = _Row(length), 0
            if waiting:
                row.add(*waiting.popleft(), table)
            while misses < 3 and row.room > 12:
                shelf = self.library.shelves[names[rng.choice(len(names), p=p)]]
                document = shelf.document(int(rng.integers(len(shelf))))
                if len(document[0]) > row.room and row.used:
                    misses += 1
                    waiting.append(document)
                else:
                    row.add(*document, table)
            rows.append(row)
        return rows


def _skipping(rng: np.random.Generator, length: int, context: int) -> NDArray[np.int64]:
    """Return positions [length] that jump once, every other time, to somewhere in the context.

    So a model meets all distances of a long context while it is trained on short rows.
    Source: Zhu et al. 2023, "PoSE".
    """
    positions = np.arange(length)
    if length < context and rng.random() < 0.5:
        positions[rng.integers(1, length) :] += rng.integers(0, context - length + 1)
    return positions


def _stack(rows: list[_Row], picked_share: float | None, places: NDArray[np.int64]) -> Rows:
    """Join rows; with a share, pick that many targets, those that count first."""
    ids = torch.from_numpy(np.stack([row.ids for row in rows]))
    documents = torch.from_numpy(np.stack([row.documents[:-1] for row in rows]))
    weights = torch.from_numpy(np.stack([row.weights[1:] for row in rows]))
    picked = None
    if picked_share is not None:
        order = weights.reshape(-1).sort(descending=True, stable=True).indices
        picked = order[: int(weights.numel() * picked_share)]
    return Rows(ids, documents, weights, picked, torch.from_numpy(places))
