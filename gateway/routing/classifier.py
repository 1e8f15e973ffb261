"""What a request is about and how hard it is: one head over hashed n-grams. NumPy only.

Tasks are linear; who answers well is so, too, but for a small hidden layer over the same rows.
`Classifier.load()` reads the head that `headgate policy fit` made. One pass costs a regular
expression, two gathers of at most a few hundred rows and a softmax: tenths of a millisecond at
any length, since only the first and last tokens are read.
"""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.errors import SettingsError
from gateway.routing.counts import COUNTS, counts
from gateway.routing.features import Content, Request, read
from gateway.routing.forms import form_rows, form_weights
from gateway.routing.judges import Judges
from gateway.routing.language import TOLD, detect
from gateway.routing.second_head import SecondHead
from gateway.routing.together import Together, groups_of
from gateway.routing.vectorise import Table, WordVectors, gram_rows, load_words, scaled
from gateway.routing.words import CHARS, Text, Words
from policies.model import RequestFeatures, Task

SHIPPED_HEAD = Path(__file__).parent / "head"
FORMAT = 4
WORDS = "words.npz"
TASKS: tuple[Task, ...] = get_args(Task)
Floats = NDArray[np.float32]


class Reading(Struct, frozen=True):
    """What the head says of a text."""

    task: Task
    confidence: float
    difficulty: float
    language: str
    quality: dict[str, float]


class Head(Struct, frozen=True, kw_only=True):
    """The arrays of a head: R rows (buckets), F forms, D dense columns (counts, then the words'
    mean vector); L labels, P logits of patterns and H hidden units, side by side in this order."""

    card: dict[str, Any]
    rows: Table
    """[R, L + P + H]"""
    idf: Floats
    """[R]"""
    forms: Table
    """[F, P + H]"""
    dense: Floats
    """[D, L + P + H]"""
    bias: Floats
    """[L + P + H]"""
    up: Floats
    """[H, P]: what the hidden units add to the logits."""
    words: WordVectors
    to_task: Floats
    """[L, 8], 1 where a label belongs to a task."""
    judges: Judges = Judges()
    """Of answers; empty where none were fitted."""
    second: SecondHead | None = None
    """What a second look adds; None where none was fitted."""

    @classmethod
    def load(cls, folder: Path) -> "Head":
        """Read `head.npz`, `words.npz` and `card.json`. Raises SettingsError."""
        try:
            card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
            with np.load(folder / "head.npz", allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            if card["format"] != FORMAT or tuple(card["counts"]) != COUNTS:
                raise ValueError(f"made for another version (format {card['format']})")
            labels = card["labels"]
            to_task = np.zeros((len(labels), len(TASKS)), dtype=np.float32)
            for index, label in enumerate(labels):
                to_task[index, TASKS.index(card["task_of"][label])] = 1.0
            words, vectors = load_words(folder / WORDS)
            return cls(
                card=card,
                rows=Table(arrays["rows"], arrays["rows_scale"]),
                idf=arrays["idf"].astype(np.float32),
                forms=Table(arrays["forms"], arrays["forms_scale"]),
                up=arrays["up"].astype(np.float32),
                dense=arrays["dense"].astype(np.float32),
                bias=arrays["bias"].astype(np.float32),
                words=WordVectors(words, vectors, arrays["word_weights"].astype(np.float32)),
                to_task=to_task,
                judges=Judges.load(folder, arrays),
                second=SecondHead.load(folder, card["version"]),
            )
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(
                f"routing.head: {str(folder)!r}: no usable head: {error}; make one with "
                "`headgate policy fit --outcomes FILE --out DIR`"
            ) from None


class Classifier:
    """Features of requests.

    Args:
        head: None never happens in production; see `load`.
        memory: texts whose reading is remembered, by digest.
    """

    def __init__(self, head: Head, *, memory: int = 4096) -> None:
        self._head = head
        card = head.card
        self._labels = len(card["labels"])
        self._logits = self._labels + head.up.shape[1]
        groups = [group for fit in card["fits"] for group in fit["groups"]]
        follows = {name: (line[0], line[1]) for name, line in card["follows"].items()}
        self.together = Together(groups_of(groups), card["reference"], follows)
        self._reference: str = card["reference"]
        self._temperature = float(card["temperature"])
        self._bits: int = card["bits"]
        self._memory = memory
        self._readings: OrderedDict[bytes, Reading] = OrderedDict()
        self.head = head
        self.words = Words(head.words.places)
        self.version: str = card["version"]
        self.card: dict[str, Any] = card

    @classmethod
    def load(cls, folder: str | Path | None = None) -> "Classifier":
        """The head in `folder`, or the shipped one. Raises SettingsError."""
        return cls(Head.load(Path(folder) if folder else SHIPPED_HEAD))

    def features(self, request: Request) -> RequestFeatures:
        """Features of a request. Raises WireError for a prompt of mixed kinds."""
        return self.classify(read(request))

    def classify(self, content: Content) -> RequestFeatures:
        """Features of a request that has been read."""
        reading = self.read_text(content.text)
        return RequestFeatures(
            task=reading.task,
            task_confidence=reading.confidence,
            difficulty=reading.difficulty,
            language=reading.language,
            prompt_tokens=content.prompt_tokens,
            turns=content.turns,
            wants=content.wants,
            quality=reading.quality,
            head=self.version,
        )

    def read_text(self, text: str) -> Reading:
        """What the head says of a text; remembered, so a repeat costs one digest."""
        # only the ends are read, so only they and the length tell texts apart
        seen = text if len(text) <= 2 * CHARS else f"{text[:CHARS]}{text[-CHARS:]}{len(text)}"
        key = hashlib.blake2b(seen.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        reading = self._readings.get(key)
        if reading is None:
            reading = self._read(text)
            self._readings[key] = reading
            if len(self._readings) > self._memory:
                self._readings.popitem(last=False)
        return reading

    def outputs(self, text: Text) -> tuple[Floats, Floats]:
        """Raw outputs [L + P] of a text (label logits, then patterns'), and hidden units [H]."""
        head, labels, logits = self._head, self._labels, self._logits
        rows, forms = gram_rows(text, self._bits), form_rows(text)
        dense = np.concatenate((counts(text), head.words.mean(text.vectors)))
        found = head.rows.dot(scaled(head.idf.take(rows)), rows)
        found += dense @ head.dense + head.bias
        found[labels:] += head.forms.dot(form_weights(len(forms)), forms)
        hidden = np.maximum(found[logits:], 0)
        found[labels:logits] += hidden @ head.up
        return found[:logits], hidden

    def _read(self, text: str) -> Reading:
        read = self.words.read(text)
        outputs, _ = self.outputs(read)
        logits = outputs[: self._labels] / self._temperature
        tasks = (np.exp(logits - logits.max()) @ self._head.to_task).tolist()
        best = tasks.index(max(tasks))
        quality = self.together.quality(outputs[self._labels :])
        return Reading(
            task=TASKS[best],
            confidence=tasks[best] / sum(tasks),
            difficulty=1.0 - quality[self._reference],
            language=detect(text, read.cut(0, TOLD)),
            quality=quality,
        )
