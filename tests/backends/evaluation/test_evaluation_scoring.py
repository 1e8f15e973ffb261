"""What counts as right, and how shares get their intervals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.evaluation.candidate import Answer
from backends.evaluation.figures import difference, macro_average, wilson
from backends.evaluation.items import Item, Match
from backends.evaluation.scoring import parsed_json, passes, repeats


@pytest.mark.parametrize(
    ("match", "answer", "said", "right"),
    [
        ("exact", "ABC", "ABC", True),
        ("exact", "ABC", ' "ABC".\n', True),
        ("exact", "ABC", "abc", False),
        ("exact", "- a\n- b", "- a\n- b", True),
        ("exact", "def f(x):\n    return x", "```python\ndef f(x):\n    return x\n```", True),
        ("number", "5", "2 + 3 = 5. The answer is 5.", True),
        ("number", "5", "2 + 3 = 5. The answer is 15.", False),
        ("number", "5", "five", False),
        ("number", "-7", "It is -7", True),
        ("number", "7", "12-7", True),
        ("number", "0.5", "0.50", True),
        ("number", "5", "5th", False),
        ("number", "1000", "", False),
        ("word", "yes", "Yes, it is.", True),
        ("word", "yes", "No, not yes.", False),
        ("phrase", "Paris", "The capital of France is Paris.", True),
        ("phrase", "Paris", "Parisian", False),
        ("phrase", "5 meters", "15 meters", False),
        ("phrase", "Paris", "Paris " + "and a very long story about it " * 3, False),
        ("mentions", "headgate serve", "Type `headgate serve` " + "and wait " * 30, True),
        ("mentions", "--soft", "the flag --soft, of course", True),
        ("json", '{"a": 1, "b": "x"}', '{"b":"x","a":1}', True),
        ("json", '{"a": 1}', '```json\n{"a": 1}\n```', True),
        ("json", '{"a": 1}', '{"a": 1} and more', False),
        ("json", '{"a": 1}', '{"a": "1"}', False),
        ("fluent", "", "Good morning!", True),
        ("fluent", "", "...", False),
        ("fluent", "", "on and on and on " * 5, False),
        ("fluent", "ship", "The ship came home.", True),
        ("fluent", "ship", "The ship", False),
        ("fluent", "ship", "The worship was long.", False),
    ],
)
def test_passing_follows_the_kind_of_match(
    match: Match, answer: str, said: str, right: bool
) -> None:
    """Each kind of match accepts what it should and nothing else."""
    answers = (answer,) if answer else ()
    item = Item(id="1", prompt="", answers=answers, match=match, part="p", task="t")
    assert passes(item, said) is right


def test_any_of_several_answers_is_right() -> None:
    """A question may have more than one right answer."""
    item = Item(id="1", prompt="", answers=("four", "4"), match="phrase", part="p", task="t")
    assert passes(item, "A dog has 4 legs.")
    assert passes(item, "Four.")
    assert not passes(item, "40")


@given(st.sampled_from(["exact", "number", "word", "phrase", "mentions", "fluent"]), st.text())
def test_scoring_survives_any_answer(match: Match, said: str) -> None:
    """Whatever a model says, judging it raises nothing."""
    item = Item(id="1", prompt="", answers=("5",), match=match, part="p", task="t")
    assert passes(item, said) in (True, False)
    parsed_json(said)


def test_repetition_is_three_times_the_same_four_words() -> None:
    """Twice is style, three times is a loop."""
    assert not repeats("the end of the world is the end of the world")
    assert repeats("it was the best day " * 3)


@pytest.mark.parametrize(
    ("passed", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_interval_gives_the_published_values(
    passed: int, count: int, low: float, high: float
) -> None:
    """Newcombe 1998, table I (81 of 263), and the textbook's cases of ten."""
    rate = wilson(passed, count)
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-4)


def test_macro_average_weighs_task_functions_alike() -> None:
    """A function with few questions counts as much as one with many, and the interval holds it."""
    mean, (low, high) = macro_average([[True] * 10, [False] * 1000, [True, False] * 50])
    assert mean == 0.5
    assert low < 0.5 < high
    spread = math.sqrt(0.25 / 100) / 3
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert macro_average([[True, False]]) == macro_average([[False, True]])


def test_difference_is_judged_in_pairs() -> None:
    """Two models that fail the same questions differ surely, however hard the questions are."""
    items = [
        Item(id=str(n), prompt="", answers=("x",), part="p", task="ab"[n % 2]) for n in range(400)
    ]
    weak = [(item, Answer(), n % 10 == 0) for n, item in enumerate(items)]
    strong = [(item, Answer(), n % 10 in (0, 1)) for n, item in enumerate(items)]
    found = difference("strong", strong, "weak", weak)
    assert (found.name, found.over, found.difference) == ("strong", "weak", 0.1)
    assert 0.06 < found.low < 0.1 < found.high < 0.14
    same = difference("a", weak, "b", weak)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
