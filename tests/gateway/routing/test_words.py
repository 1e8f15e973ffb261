"""Texts cut into tokens out of memory: as the plain definition has it, and bounded."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.routing import words as module
from gateway.routing.counts import COUNTS, counts
from gateway.routing.words import CODE, LETTERS, NUMBER, ONE, Words, tokens_of

WORDS = Words()
PIECES = st.sampled_from(
    ["a", "Word", "42", "٣4", "½", "_", ", ", "don't", "x=1", "(", "\n", "\r\n", "\t", "\x1c",
     "the", "\u2028", " ", "İ", "ΑΣ", "日本", "é", "e\u0301", "\ud800", "\x02"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=700).map("".join)))
@example("word, " * 200)
@example("{}" * 900)
def test_words_read_out_of_memory_are_the_tokens(text: str) -> None:
    """The same tokens as by the regular expression, whether runs are new or known."""
    for words in (Words(), WORDS, WORDS):
        read = words.read(text)
        assert read.tokens == tokens_of(text)
        assert len(read.ids) == len(read.tokens) + 2
        assert read.bag[ONE] == len(set(read.tokens))


def test_what_is_known_of_a_word_stands_in_its_columns() -> None:
    """Letters, digits, lists and vectors; numbers of a length have one hash, words their own."""
    read = Words({"python": 7}).read("Python 42, python 17 pears")
    python, number, comma, *_ = read.known
    assert (python[LETTERS], python[CODE], python[NUMBER]) == (6, 1, 0)
    assert (number[NUMBER], number[LETTERS], comma[LETTERS]) == (1, 0, 0)
    assert read.vectors.tolist() == [7, 0, 0, 7, 0, 0]
    assert (read.sums[LETTERS], read.bag[LETTERS], read.sums[ONE], read.bag[ONE]) == (17, 11, 6, 5)
    start, python, number, comma, again, other, *last = read.ids.tolist()
    assert (again, other) == (python, number)
    assert len({start, python, number, comma, *last}) == 6
    assert read.places[1] != read.places[4]


@pytest.mark.parametrize("limit", ["MAX_WORDS", "MAX_BYTES"])
def test_memory_starts_over_and_old_texts_stay_as_they_are(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond either bound all is forgotten; a text read before still knows its tokens."""
    monkeypatch.setattr(module, limit, 60 if limit == "MAX_WORDS" else 20_000)
    words = Words()
    first = words.read("one two three")
    ids = first.ids.copy()
    most = 0
    for number in range(300):
        words.read(f"word {number} and {number * 7}, {'long' * number}")
        most = max(most, len(words._names))
    assert most < 100
    assert first.tokens == ["one", "two", "three"]
    assert (first.ids == ids).all()
    assert (words.read("one two three").ids == ids).all()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("What is 3 + 4?", {"starts_question": 1, "question_end": 1, "numbers": 1}),
        ('Write f(x) == {"a": [1]};', {"starts_order": 1, "brackets": 1.5, "code_marks": 2}),
        ("I, you and me. You", {"first_person": 2, "second_person": 1, "commas": 1 / 3}),
        ("I and you\n- a\n2) b.", {"list_lines": 1, "newlines": 1, "ends_stop": 1}),
        ("AB é", {"capitals": 1, "upper_share": 1.6, "non_ascii": 1.6, "ends_word": 1}),
        ("42 42 select http://x", {"digit_share": 16 / 21, "urls": 1, "code_words": 0.5}),
        ("a b a b", {"repeats": 1, "mean_word": 0.25, "mark_share": 0}),
    ],
)  # fmt: skip
def test_counts_are_what_their_names_say(text: str, wanted: dict[str, Any]) -> None:
    """Worked examples of each kind."""
    found = dict(zip(COUNTS, counts(WORDS.read(text)).tolist(), strict=True))
    for name, value in wanted.items():
        assert np.isclose(found[name], value), (name, found[name])
