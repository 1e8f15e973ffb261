"""Which words moved a reading: at one text the head is linear, so outputs are sums over words.

A bucket's share goes to the words that made it: its own word, half to each word of a pair, equally
to those that a form spans. The mean of word vectors is shared by weight. Hidden units count as they
stand, on or off; difficulty's log-odds are followed to the logits by their slopes. What is left are
the cheap counts and the bias.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.routing.classifier import Classifier, Head
from gateway.routing.counts import COUNTS, counts
from gateway.routing.forms import form_spans, form_weights
from gateway.routing.vectorise import gram_rows, scaled
from gateway.routing.words import Hashes, Text, buckets

TOP = 8
Floats = NDArray[np.float64]


def moved(classifier: Classifier, text: str) -> dict[str, Any]:
    """The words and counts that moved difficulty and task most, in logits.

    Returns:
        {"difficulty": {"words": [[word, logits], …], "counts": [[name, logits], …]}, "task": {…}};
        positive raises difficulty, or speaks for the label that won. Empty without words.
    """
    head, read = classifier.head, classifier.words.read(text)
    tokens = read.tokens
    if not tokens:
        return {}
    card = head.card
    label, directions = _directions(classifier, read)
    words = _by_word(head, read, directions)
    cheap = counts(read)[:, None] * (head.dense[: len(COUNTS)] @ directions)
    return {
        "difficulty": {"words": _top(tokens, -words[:, 0]), "counts": _top(COUNTS, -cheap[:, 0])},
        "task": {
            "label": card["labels"][label],
            "words": _top(tokens, words[:, 1]),
            "counts": _top(COUNTS, cheap[:, 1]),
        },
    }


def _directions(classifier: Classifier, text: Text) -> tuple[int, Floats]:
    """The label that won, and [L + P + H, 2]: how the reference's log-odds and the label's logit
    follow what the rows add up to."""
    head = classifier.head
    labels = len(head.card["labels"])
    outputs, hidden = classifier.outputs(text)
    label = int(outputs[:labels].argmax())
    directions = np.zeros((len(head.bias), 2))
    directions[label, 1] = 1.0
    directions[labels : len(outputs), 0] = classifier.together.slopes(outputs[labels:])
    on = hidden > 0
    directions[len(outputs) :, 0] = on * (head.up @ directions[labels : len(outputs), 0])
    return label, directions


def _by_word(head: Head, text: Text, directions: Floats) -> Floats:
    """[tokens, 2]: what each token adds in each direction, in logits."""
    bits = head.card["bits"]
    singles, pairs = buckets(text.ids[1:-1], bits), buckets(text.pairs, bits)
    rows = gram_rows(text, bits)
    count = np.zeros(len(head.idf), dtype=np.float32)
    count[rows] = scaled(head.idf[rows])
    times = np.bincount(np.concatenate([singles, pairs]), minlength=len(head.idf))

    def worth(places: Hashes) -> Floats:
        share = count[places] / times[places]
        return np.asarray(share[:, None] * (head.rows.take(places) @ directions), dtype=np.float64)

    shares = head.words.shares(text.vectors)
    found = worth(singles) + shares @ (head.dense[len(COUNTS) :] @ directions)
    halves = worth(pairs) / 2  # pair i joins token i − 1 and token i; the ends stand alone
    found += halves[:-1] + halves[1:]
    found[0] += halves[0]
    found[-1] += halves[-1]
    return np.asarray(found + _by_form(head, text, directions))


def _by_form(head: Head, text: Text, directions: Floats) -> Floats:
    """[tokens, 2]: what forms add, each shared by the tokens that it spans."""
    buckets, starts, stops = np.array(form_spans(text)).T
    rows, place, times = np.unique(buckets, return_inverse=True, return_counts=True)
    worth = head.forms.take(buckets) @ directions[len(directions) - len(head.forms.scale) :]
    worth *= (form_weights(len(rows))[place] / times[place] / (stops - starts))[:, None]
    steps = np.zeros((len(text.places) + 1, 2))
    np.add.at(steps, starts, worth)
    np.subtract.at(steps, stops, worth)
    return np.cumsum(steps, axis=0)[:-1]


def _top(names: Sequence[str], values: NDArray[np.floating[Any]]) -> list[list[Any]]:
    """Equal names added up, the strongest first."""
    sums: dict[str, float] = {}
    for name, value in zip(names, values.tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + value
    ordered = sorted(sums.items(), key=lambda pair: -abs(pair[1]))[:TOP]
    return [[name, round(value, 3)] for name, value in ordered if abs(value) >= 0.001]
