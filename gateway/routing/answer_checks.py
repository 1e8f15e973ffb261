"""What can be seen of an answer without a model: how it goes with its question, and with itself.

Sums that do not add up, JSON that is none, a list that lost an item, words said twice: a small
model is often sure of such answers. None of these decides alone; a judge weighs them together with
the tokens' probabilities. Reading is bounded, and takes some ten microseconds.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from gateway.routing.answer_sums import MOST_DIGITS, NUMBER, sums_of
from gateway.routing.answer_sums import NAMES as SUMS

MOST = 4096
"""Characters read of a question (its end) and of an answer (its beginning)."""
_WORD = re.compile(r"\w+")
_LIST_MARKS = " .\n"

NAMES = (
    "log_words", "echoed", "all_echoed", "verbatim", "said_twice", "capital", "full_stop", "code",
    "log_chars", "question_log_words", "question_log_chars", "question_mark",
    "numbers", "numbers_echoed", "bare_number", "digits", "log_number", "question_numbers",
    "question_log_number", "greatest", "least", "far_beyond",
    *SUMS,
    "json", "items", "items_more", "ascending", "descending", "same_items",
)  # fmt: skip
"""Of what `checks_of` gives, in its order."""


def checks_of(question: str, answer: str) -> tuple[float, ...]:
    """One number for each of NAMES; empty for an answer that says nothing."""
    question, answer = question[-MOST:], answer[:MOST]
    if not answer.strip():
        return ()
    asked, said = NUMBER.findall(question), NUMBER.findall(answer)
    return (
        *_of_words(question, answer),
        *_of_numbers(answer, asked, said),
        *sums_of(question, answer, asked, said),
        _json_found(answer),
        *_of_lists(question, answer),
    )


def _of_words(question: str, answer: str) -> tuple[float, ...]:
    words, known = _WORD.findall(answer.lower()), set(_WORD.findall(question.lower()))
    echoed = sum(word in known for word in words)
    size = max(len(words), 1)
    return (
        math.log1p(len(words)),
        echoed / size,
        float(echoed == len(words) > 0),
        float(answer.strip().lower() in question.lower()),
        1 - len(set(words)) / size if words else 0.0,
        float(answer[:1].isupper()),
        float(answer.rstrip().endswith(".")),
        float("`" in answer),
        math.log1p(len(answer)),
        math.log1p(len(known)),
        math.log1p(len(question)),
        float("?" in question),
    )


def _of_numbers(answer: str, asked: Sequence[str], said: Sequence[str]) -> tuple[float, ...]:
    bare = answer.strip()
    known = set(asked)
    echoed = sum(number in known for number in said) / len(said) if said else -1.0
    last = float(said[-1]) if said else 0.0
    most = max(map(float, asked), default=0.0)
    both = bool(asked) and bool(said)
    return (
        float(len(said)),
        echoed,
        float(NUMBER.fullmatch(bare) is not None),
        float(min(len(bare), MOST_DIGITS)) if bare.isdigit() else 0.0,
        math.log1p(last),
        float(len(known)),
        math.log1p(most),
        float(both and last == most),
        float(both and last == min(map(float, asked))),
        float(both and max(map(float, said)) > 10 * most),
    )


def _json_found(answer: str) -> float:
    """1: the answer is JSON; −1: it begins like JSON and is none, or names a key twice; 0: else."""
    if not answer.lstrip().startswith(("{", "[")):
        return 0.0
    twice = False

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        known = dict(found)
        twice |= len(known) < len(found)
        return known

    try:
        json.loads(answer, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return -1.0
    return -1.0 if twice else 1.0


def _of_lists(question: str, answer: str) -> tuple[float, ...]:
    """Of what stands between commas: how many, in order, and whether they are the question's."""
    said = [item.strip(_LIST_MARKS).lower() for item in answer.split(",")]
    asked = [item.strip(_LIST_MARKS).lower() for item in question.split(":")[-1].split(",")]
    numbers = [float(item) for item in said if NUMBER.fullmatch(item)]
    order: list[Any] = numbers if len(numbers) == len(said) else list(said)
    several = len(said) > 1
    return (
        float(len(said)),
        float(len(said) - len(asked)),
        float(several and order == sorted(order)),
        float(several and order == sorted(order, reverse=True)),
        float(sorted(said) == sorted(asked)),
    )
