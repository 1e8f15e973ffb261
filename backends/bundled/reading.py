"""Lessons that fill a context: a question after a long text, and long conversations.

Else a model that has seen long rows of stories only goes on with the story, whatever is asked.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

from backends.bundled.facts import Pair
from backends.bundled.facts_tables import COLOURS, NAMES

MOST_CHARACTERS: Final = 2600
"""Of text before a question: with the question it fits into a row of 1,024 tokens."""
_AFTER: Final = (
    "{t}\n\n{q}",
    "{t}\n\nQuestion: {q}",
    "{t}\n\nThat was the text. {q}",
    "Here is a text.\n\n{t}\n\nNow to something else. {q}",
    "Read this:\n{t}\n---\n{q}",
    "Text: {t}\n\n{q}",
)
_READ_THIS: Final = ("Please read this. {t}", "{t}", "I will ask you something later. {t}")
_THINGS: Final = "coat boat kite door cup hat bicycle lamp box ring scarf bag".split()


def _passage(rng: random.Random, texts: Sequence[str]) -> str:
    """Cut a piece of some length out of a text, between words; short ones as often as long ones."""
    text = rng.choice(texts)
    size = int(100 * (MOST_CHARACTERS / 100) ** rng.random())
    start = rng.randrange(max(1, len(text) - size))
    start = text.find(" ", start) + 1
    return text[start : start + size].rsplit(" ", 1)[0].strip()


def _question_after(
    rng: random.Random, texts: Sequence[str], questions: Sequence[Pair]
) -> list[Pair]:
    """Ask something that has nothing to do with the text before it."""
    question, answer = rng.choice(questions)
    return [(rng.choice(_AFTER).format(t=_passage(rng, texts), q=question), answer)]


def _question_later(
    rng: random.Random, texts: Sequence[str], questions: Sequence[Pair]
) -> list[Pair]:
    """Give the text first, and ask in the next turn."""
    opening = rng.choice(_READ_THIS).format(t=_passage(rng, texts))
    return [(opening, "I have read it. What do you want to know?"), rng.choice(questions)]


def _found_in_text(
    rng: random.Random, texts: Sequence[str], questions: Sequence[Pair]
) -> list[Pair]:
    """Ask for something that one sentence in the middle of the text says."""
    words = _passage(rng, texts).split(" ")
    (name, thing, (_, colour)) = rng.choice(NAMES), rng.choice(_THINGS), rng.choice(COLOURS)
    words.insert(rng.randint(0, len(words)), f"The {thing} of {name} is {colour}.")
    question = rng.choice(("What color is the {0} of {1}?", "Which color has the {0} of {1}?"))
    asked = question.format(thing, name)
    return [(rng.choice(_AFTER).format(t=" ".join(words), q=asked), f"It is {colour}.")]


def _long_talk(rng: random.Random, texts: Sequence[str], questions: Sequence[Pair]) -> list[Pair]:
    """Ask one thing after the other."""
    turns: list[Pair] = []
    room = int(400 * (MOST_CHARACTERS / 400) ** rng.random())
    while room > 0:
        turns.append(rng.choice(questions))
        room -= sum(map(len, turns[-1])) + 20  # the markers of a turn
    return turns[:-1] or turns


_KINDS: Final[tuple[Callable[..., list[Pair]], ...]] = (
    _question_after,
    _question_after,
    _question_later,
    _found_in_text,
    _long_talk,
)


def make_readings(
    texts: Sequence[str], questions: Sequence[Pair], *, count: int, seed: int
) -> list[list[Pair]]:
    """Make conversations out of running text and single questions of the training side."""
    rng = random.Random(seed)
    return [rng.choice(_KINDS)(rng, texts, questions) for _ in range(count)]
