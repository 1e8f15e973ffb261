"""Whether answers come out, as far as a question's plainest words tell."""

import pytest

from gateway.routing.answer_sums import NAMES, NUMBER, sums_of


def check(question: str, answer: str, name: str) -> float:
    """One of the verdicts."""
    found = sums_of(question, answer, NUMBER.findall(question), NUMBER.findall(answer))
    return dict(zip(NAMES, found, strict=True))[name]


@pytest.mark.parametrize(
    ("name", "question", "right", "wrong"),
    [
        ("sum", "What is 17 + 25?", "42", "It is 43."),
        ("term", "What is (12 + 5) * 2?", "34", "32"),
        ("term", "Solve: 20 - 6 + 3", "17", "11"),
        ("term", "Add up 28 + 5 + 6.", "39", "33"),
        ("sum", "What is 3 - 10?", "-7", "7"),
        ("spelled", "Add 18 and 383.", "401", "311"),
        ("spelled", "Take 21 from 48. What is left?", "27", "29"),
        ("spelled", "Multiply 9 by 29.", "261", "279"),
        ("spelled", "Divide 84 by 7.", "12", "11"),
        ("yes_right", "Is 36 divisible by 6?", "Yes.", "no"),
        ("yes_right", "yes or no: 7 divides 165.", "no", "yes"),
        ("yes_right", "Tell me if 7 is less than 3.", "No", "yes"),
        ("yes_right", "Is 12 greater than 3?", "yes", "no"),
        ("compared", "Which is the largest: 9, 88, 14?", "88", "14"),
        ("compared", "Name the smaller of 9 and 88.", "9", "88"),
        ("turned", 'Reverse the word "stone".', "enots", "enohp"),
        ("turned", "List from last to first: mouse tower hungry", "hungry tower mouse", "hungry a"),
        ("letter", "Which letter is the third one in parrot?", "r", "p"),
        ("letter", "which letter does kitten end with?", "n", "e"),
        ("letter", 'The word "black" begins with which letter?', "b", "k"),
        ("counted", "Number of letters in nose?", "4", "5"),
        ("counted", "How long is the word ocean?", "5", "6"),
        ("counted", "Look at knee. How many vowels does it contain?", "2", "1"),
        ("counted", 'How often does r occur in "strawberry"?', "3", "2"),
        ("counted", "How many things are listed: fig, plum, pear", "3", "4"),
        ("cased", "Put silver in capitals.", "SILVER", "Silver"),
        ("cased", 'Write "CELERY" in lowercase.', "celery", "salary"),
        (
            "clock",
            "A lesson starts at 3:15 and lasts 35 minutes. When does it end?",
            "3:50",
            "4:30",
        ),
        ("clock", "What time is 2 hours before 1:30?", "11:30", "3:30"),
    ],
)
def test_what_comes_out_is_told_from_what_does_not(
    name: str, question: str, right: str, wrong: str
) -> None:
    """1 for the one, −1 for the other."""
    assert check(question, right, name) == 1.0
    assert check(question, wrong, name) == -1.0


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("term", "Call 555-0199 (ext. 3", "5"),
        ("term", "(((((((((((1)", "1"),
        ("term", "What is 4 / (2 - 2)?", "0"),
        ("term", "What day was 2024-11-17?", "3"),
        ("term", "What day was 3/4/2024?", "3"),
        ("spelled", "I was born in 1990 and moved in 2003.", "3993"),
        ("compared", "Sort from smallest to largest: 3, 1, 2", "1"),
        ("compared", "Who is the tallest of 3 brothers and 2 sisters?", "Tom"),
        ("letter", "Write a letter to the first customer in Rome.", "Dear customer"),
        ("counted", "How many people live in Rome?", "3 million"),
        ("yes_right", "Is it raining?", "yes"),
        ("clock", "The train leaves at 3:15.", "3:50"),
        ("counted", "How many letters are in word? " + "padding " * 99, "4"),
        ("sum", "", ""),
    ],
)
def test_what_is_not_asked_has_no_verdict(name: str, question: str, answer: str) -> None:
    """Nothing else in the question is taken for a sum, and nothing breaks."""
    assert check(question, answer, name) == 0.0
