"""Which words moved a reading: the head is linear, so every output is a sum over words.

A bucket's share goes to the words that made it: its own word, or half to each word of a pair. The
mean of word vectors is shared by weight. What is left are the cheap counts and the bias.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.routing.classifier import Classifier
from gateway.routing.vectorise import COUNTS, counts, scaled, tokens_of

TOP = 8
Floats = NDArray[np.float64]


def moved(classifier: Classifier, text: str) -> dict[str, Any]:
    """The words and counts that moved difficulty and task most, in logits.

    Returns:
        {"difficulty": {"words": [[word, logits], …], "counts": [[name, logits], …]}, "task": {…}};
        positive raises difficulty, or speaks for the label that won. Empty without words.
    """
    head, tokens = classifier.head, tokens_of(text)
    if not tokens:
        return {}
    card = head.card
    labels = len(card["labels"])
    outputs = classifier.outputs(text)[1]
    label = int(outputs[:labels].argmax())
    reference = labels + card["backends"].index(card["reference"])
    words = _by_word(classifier, tokens, [reference, label])
    cheap = counts(text, tokens)[:, None] * head.dense[: len(COUNTS)][:, [reference, label]]
    return {
        "difficulty": {"words": _top(tokens, -words[:, 0]), "counts": _top(COUNTS, -cheap[:, 0])},
        "task": {
            "label": card["labels"][label],
            "words": _top(tokens, words[:, 1]),
            "counts": _top(COUNTS, cheap[:, 1]),
        },
    }


def _by_word(classifier: Classifier, tokens: list[str], outputs: list[int]) -> Floats:
    """[tokens, outputs]: what each token adds to each output, in logits."""
    head = classifier.head
    singles, pairs = classifier.vectoriser.places(tokens)
    rows = classifier.vectoriser.rows(tokens)
    count = np.zeros(len(head.idf), dtype=np.float32)
    count[rows] = scaled(head.idf[rows])
    times = np.bincount(np.concatenate([singles, pairs]), minlength=len(head.idf))

    def worth(places: NDArray[np.int64]) -> Floats:
        share = count[places] / times[places]
        return np.asarray(share[:, None] * head.rows[places][:, outputs], dtype=np.float64)

    found = worth(singles) + head.words.shares(tokens) @ head.dense[len(COUNTS) :][:, outputs]
    halves = worth(pairs) / 2  # pair i joins token i − 1 and token i; the ends stand alone
    found += halves[:-1] + halves[1:]
    found[0] += halves[0]
    found[-1] += halves[-1]
    return np.asarray(found)


def _top(names: Sequence[str], values: NDArray[np.floating[Any]]) -> list[list[Any]]:
    """Equal names added up, the strongest first."""
    sums: dict[str, float] = {}
    for name, value in zip(names, values.tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + value
    ordered = sorted(sums.items(), key=lambda pair: -abs(pair[1]))[:TOP]
    return [[name, round(value, 3)] for name, value in ordered if abs(value) >= 0.001]
