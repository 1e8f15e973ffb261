"""Answers that their questions settle: worked out, and compared."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.answer_checks import NAMES, checks_of
from gateway.routing.answer_code import printed
from gateway.routing.answer_numbers import roman, worded

FACTS = "Ann is taller than Bo. Bo is taller than Cy. "
CODE = "What does this print?\n"


@pytest.mark.parametrize(
    ("question", "right", "wrong", "name"),
    [
        ("Find the total: 3, 8, 8, 20", "39", "38", "total"),
        ("Which of these are even? 1, 17, 10, 6", "10, 6", "10", "parity"),
        ("Pick out the odd numbers: 2, 4", "none", "2", "parity"),
        ("Is 709 even?", "no", "yes", "parity"),
        ("What comes next: 15, 25, 35, 45, ...?", "55", "50", "next"),
        ("What is the next number in 3, 9, 27, 81?", "243", "90", "next"),
        ("Find the next number: 4, 7, 11, 18, 29, ?", "47", "40", "next"),
        ("Continue the pattern: 2, 3, 5, 8, 12", "17", "16", "next"),
        ("What is one half of 78?", "39", "38", "scaled"),
        ("Which number stands right behind 99?", "100", "98", "neighbour"),
        ("Change 41 yards into feet.", "123 feet", "133 feet", "converted"),
        ("How many inches are in 59.5 feet?", "714", "700", "converted"),
        ("Convert 125 minutes to hours and minutes.",
         "2 hours and 5 minutes", "2 hours and 15 minutes", "converted"),
        ("Express 31000 grams in kilograms.", "31 kilograms", "310", "converted"),
        ("What is 10 C in Fahrenheit?", "50", "60", "degrees"),
        ("Change 212 F to C.", "100", "90", "degrees"),
        ("Find 451 rounded to 100s.", "500", "400", "rounded"),
        ("Which multiple of 10 is closest to 724?", "720", "730", "rounded"),
        ("What is 30% of 340?", "102", "92", "share"),
        ("Spell out the number 7470.",
         "seven thousand four hundred and seventy", "seven", "in_words"),
        ("Say 46 in words.", "Forty-six.", "forty", "in_words"),
        ("Write five thousand and twenty-one as a number.", "5,021", "521", "in_words"),
        ("Express 84 in Roman numerals.", "LXXXIV", "LXXX", "numeral"),
        ("What number is XVII?", "17", "18", "numeral"),
        ("Which weekday is May 22, 2025?", "Thursday", "Friday", "calendar"),
        ("Today is Tuesday. What day is it 19 days from now?",
         "It is Sunday.", "Monday", "calendar"),
        ("25 days before Monday is which day?", "Thursday", "Friday", "calendar"),
        ("What day comes after Friday?", "Saturday comes after Friday.", "Friday", "calendar"),
        ("How many days does February 2028 have?", "29", "28", "calendar"),
        (FACTS + "Who is the tallest?", "Ann", "Bo", "ordered"),
        (FACTS + "Name the shortest.", "Cy", "Ann", "ordered"),
        (FACTS + "Is Cy taller than Ann?", "No.", "yes", "ordered"),
        (FACTS + "Yes or no: Ann is taller than Cy.", "yes", "no", "ordered"),
        ("Check if r is in tram.", "yes", "no", "has_letter"),
        ('Does the word "bed" contain the letter f?', "no", "yes", "has_letter"),
        ("Which is earlier in alphabetical order: jungle or balloon?",
         "balloon", "jungle", "alphabetical"),
        ("Ann is 34. Bo turned 54 this year. How old is Bo?", "54", "34", "whose"),
        ("Repeat honey 3 times.", "honey honey honey", "honey honey", "repeated"),
        ("Replace car with tree in: dog car tunnel", "dog tree tunnel", "dog car tree", "swapped"),
        ('In the text "dog car", put tree in place of car.', "dog tree", "tree car", "swapped"),
        ("Write zebra with a dash between each letter.", "z-e-b-r-a", "z-e-b-a", "respelt"),
        ("Drop the vowels from arm.", "rm", "am", "respelt"),
        ("Write the names and ages as JSON: Ann is 7. Bo is 9.",
         '{"Ann": 7, "Bo": 9}', '{"Ann": 7}', "tabled"),
        (CODE + "xs = [5, 13, 20]\nprint(xs[1])", "13", "5", "printed"),
        ("Sort these numbers from largest to smallest: 4, 58, 6", "58, 6, 4", "4, 6, 58", "sorted"),
        ("Put b, c, a in alphabetical order.", "a, b, c", "b, a, c", "sorted"),
        ("Read this list from the end: cup morning eagle",
         "eagle morning cup", "eagle cup", "words_turned"),
        ("What is the second word in this list: drum, wolf, kiwi?", "wolf", "kiwi", "placed"),
        ("Pick the longest: river, blanket, book", "blanket", "river", "longest"),
        ("Echo this: broccoli spinach", "broccoli spinach", "spinach", "echo"),
        ("Convert to a bullet list: flower, horse",
         "- flower\n- horse", "flower, horse", "bullets"),
        ("Write every number from 9 up to 12, but from 9 to 12 with commas.",
         "9, 10, 11, 12", "9, 12", "counted_up"),
        ("Put stamp, van in a JSON list.", '["stamp", "van"]', '["van"]', "json_list"),
    ],
)  # fmt: skip
def test_a_settled_answer_is_told_from_another(
    question: str, right: str, wrong: str, name: str
) -> None:
    """Each solver by itself, and what they say together."""
    for answer, verdict in ((right, 1.0), (wrong, -1.0)):
        found = dict(zip(NAMES, checks_of(question, answer), strict=True))
        assert (found[name], found["settled"]) == (verdict, verdict)


@pytest.mark.parametrize(
    "question",
    [
        "What is life about?",
        "Create a function named f in Python. It adds 18 to a number.",
        "Today is Tuesday. I have 19 days off.",
        "Ann is taller than Bo. Cy is taller than Di. Who is the tallest?",
        "Ann is taller than Bo. Is Cy taller than Bo?",
        "Pick the longest: one, two",
        "Which weekday is February 31, 2025?",
        "How many kilograms are in 3 hours?",
        "Continue the pattern: 3, 1, 4, 1, 5",
        "Say pear to me 0 times 6.",
        "Is 4 or 5 even?",
    ],
)
def test_what_nothing_settles_is_left_open(question: str) -> None:
    """A wrong verdict is worse than none."""
    assert dict(zip(NAMES, checks_of(question, "yes"), strict=True))["settled"] == 0.0


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("x = 7\nx = x * 2\nprint(x + 5)", "19"),
        ("def f(x):\n    return x * 6 + 5\nprint(f(5))", "35"),
        ("print([x * 3 for x in [4, 20, 4]])", "[12, 60, 12]"),
        ('print("gre" * 2)', "gregre"),
        ('print("flute".upper(), len("foot"))', "FLUTE 4"),
        ("print(sum([1, 2]) // 2)\nprint(-7 % 4)", "1\n1"),
        ('print("a" * 10**9)', None),
        ("print([0] * 10**9)", None),
        ("print(9 ** 9 ** 9)", None),
        ("def f(x):\n    return f(x) + f(x)\nprint(f(1))", None),
        ("print(open('/etc/passwd').read())", None),
        ("import os\nprint(os.getcwd())", None),
        ("print('%s' % 3)", None),
        ("print(x)", None),
        ("print(1 / 0)", None),
        ("print(" + "(" * 300, None),
    ],
)
def test_code_is_worked_out_without_being_run(code: str, shown: str | None) -> None:
    """Plain lines are; what is large, endless, or reaches out is not."""
    assert printed(CODE + code) == shown


@given(st.integers(1, 999_999))
def test_numbers_in_words_are_read_as_they_are_written(value: int) -> None:
    """There and back."""
    question = f"Write {worded(value)} as a number."
    assert dict(zip(NAMES, checks_of(question, str(value)), strict=True))["in_words"] == 1.0


@given(st.integers(1, 3999))
def test_roman_numerals_are_read_as_they_are_written(value: int) -> None:
    """There and back."""
    question = f"What is the Roman numeral {roman(value)} as digits?"
    assert dict(zip(NAMES, checks_of(question, str(value)), strict=True))["numeral"] == 1.0


@given(
    st.text(string.printable, max_size=200),
    st.text(string.printable, min_size=1, max_size=60).filter(str.strip),
)
def test_any_question_and_answer_can_be_checked(question: str, answer: str) -> None:
    """Whatever clients and models write, there is a number for each name."""
    assert len(checks_of(question, answer)) == len(NAMES)
