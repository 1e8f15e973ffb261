"""What can be seen of an answer without a model."""

import pytest

from gateway.routing.answer_checks import NAMES, checks_of


@pytest.mark.parametrize(
    ("question", "answer", "name", "value"),
    [
        ("What is 17 + 25?", "42", "sum", 1.0),
        ("What is 17 + 25?", "43", "sum", -1.0),
        ("17 plus 25?", "It is 42.", "sum", 1.0),
        ("What is 84/7?", "12", "sum", 1.0),
        ("What is 4 / 0?", "0", "sum", -1.0),
        ("What is 2 + 3 and 4 + 5?", "5", "sum", 0.0),
        ("How old is she?", "42", "sum", 0.0),
        ("How many?", "27 + 33 = 50. The answer is 50.", "wrong_equations", 1.0),
        ("How many?", "27 + 33 = 60. 60 * 2 = 120.", "wrong_equations", 0.0),
        ("How many?", "27 + 33 = 60. 60 * 2 = 120.", "equations", 2.0),
        ("As JSON.", '{"a": 1}', "json", 1.0),
        ("As JSON.", '{"a": 1, "a": 2}', "json", -1.0),
        ("As JSON.", '{"a": 1', "json", -1.0),
        ("As JSON.", "a is 1", "json", 0.0),
        ("As JSON.", "[" * 4000, "json", -1.0),
        ("Sort: pear, fig", "fig, pear", "ascending", 1.0),
        ("Sort: pear, fig", "fig, pear", "same_items", 1.0),
        ("Sort: pear, fig", "fig, fig", "same_items", 0.0),
        ("Sort: 10, 9", "9, 10", "ascending", 1.0),
        ("Which is largest: 9, 88?", "88", "greatest", 1.0),
        ("Which is smallest: 9, 88?", "9", "least", 1.0),
        ("Say pear twice.", "pear pear", "said_twice", 0.5),
        ("Who is it? Mona or Tom?", "Mona", "verbatim", 1.0),
        ("Who is it? Mona or Tom?", "Kate", "echoed", 0.0),
        ("What is 2 + 2?", "1" * 400, "sum", -1.0),
    ],
)
def test_checks_see_what_an_answer_is(question: str, answer: str, name: str, value: float) -> None:
    """Each one by itself."""
    assert dict(zip(NAMES, checks_of(question, answer), strict=True))[name] == value


def test_checks_of_an_empty_answer_are_none() -> None:
    """There is nothing to read; the judge goes by other things."""
    assert checks_of("What is 2 + 2?", " \n") == ()


def test_checks_read_no_more_than_the_beginning_of_long_answers() -> None:
    """What stands far behind changes nothing, and costs nothing."""
    assert checks_of("Tell me.", "word " * 10_000) == checks_of("Tell me.", "word " * 20_000)
