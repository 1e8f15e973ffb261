"""Words that moved a reading: exact shares of the head's sums."""

import time

import numpy as np
import pytest

from gateway.routing import moved as module
from gateway.routing.classifier import Classifier
from gateway.routing.counts import COUNTS, counts
from gateway.routing.moved import moved
from gateway.routing.words import tokens_of


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load()


@pytest.mark.parametrize(
    "text",
    [
        "What is 12 + 7?",
        "Write a Python function that sorts a list of numbers, please.",
        "the the the the",
        "Wie spät ist es? 今何時ですか",
        "word " * 1000,
    ],
)
def test_shares_add_up_to_the_heads_outputs(classifier: Classifier, text: str) -> None:
    """Words, counts and bias together are what the directions give, to rounding."""
    read, head = classifier.words.read(text), classifier.head
    outputs, _ = classifier.outputs(read)
    labels = len(head.card["labels"])
    label, directions = module._directions(classifier, read)
    words = module._by_word(head, read, directions).sum(0)
    cheap = counts(read) @ head.dense[: len(COUNTS)] @ directions
    slopes = classifier.together.slopes(outputs[labels:])
    wanted = [float(slopes @ outputs[labels:]), float(outputs[label])]
    assert np.allclose(words + cheap + head.bias @ directions, wanted, atol=1e-3)


def test_telling_words_come_first(classifier: Classifier) -> None:
    """Code words speak for code; nothing is said of an empty prompt."""
    found = moved(classifier, "Write a Python function that adds two numbers.")
    assert found["task"]["label"] in ("code", "own:code")
    assert {"python", "function"} & {word for word, by in found["task"]["words"][:4] if by > 0}
    assert moved(classifier, "") == {}
    assert tokens_of("") == []


def test_explaining_words_takes_little_time(classifier: Classifier) -> None:
    """Far below the 5 ms of a whole explanation, also for a long prompt."""
    text = "Explain how the tides work and why there are two of them a day, in detail. " * 30
    moved(classifier, text)
    began = time.process_time()
    for _ in range(20):
        moved(classifier, text)
    assert (time.process_time() - began) / 20 < 0.004
