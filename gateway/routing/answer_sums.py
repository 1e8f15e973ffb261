"""Whether an answer comes out: what a question asks to be reckoned, compared, turned or counted.

Each check says 1 (it comes out), −1 (it does not) or 0 (nothing of the kind is asked, or it cannot
be told what is). They read a question's plainest words only; whoever asks otherwise gets a 0.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence

MOST_DIGITS = 15
"""Of a number; longer ones are not reckoned with."""
NUMBER = re.compile(rf"\d{{1,{MOST_DIGITS}}}(?:\.\d{{1,6}})?")
_SIGNS: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "plus": operator.add,
    "-": operator.sub,
    "minus": operator.sub,
    "/": lambda a, b: a / b if b else math.nan,
    "*": operator.mul,
    "×": operator.mul,
    "x": operator.mul,
    "times": operator.mul,
}
_SIGN = r"(?:[-+*/×x]|plus|minus|times)"
_SUM = re.compile(
    rf"(?<![\d.])(?<![-+*/×] )(?<![-+*/×(])(\d{{1,9}}) ?({_SIGN}) ?(\d{{1,9}})"
    rf"(?!\.?\d| ?[)]| ?{_SIGN} ?\d)",
    re.IGNORECASE,
)
"""Of two numbers only: no part of a longer term."""
_EQUATION = re.compile(r"(\d{1,9}) ?([-+*/×x]) ?(\d{1,9}) ?= ?(\d{1,9})(?!\.?\d)")
_TERM = re.compile(r"(?<![\w.])(?<![-+*/×] )[(\d][\d ()+*/×-]{3,60}[\d)](?!\w|\.\d)")
_HAS_SIGN = re.compile(r"[-+*/×]")
_DATE = re.compile(r"\d+([-/])\d+(\1\d+)*")
"""Or a telephone's number, or from one number to another."""
_SPELLED = (
    (re.compile(r"\b(add|adds|sum|total|together|plus)\b"), operator.add),
    (re.compile(r"\b(multipl\w+|product|times)\b"), operator.mul),
    (re.compile(r"\b(divid\w+|quotient|over)\b"), _SIGNS["/"]),
    (re.compile(r"\bsplit\b"), lambda a, b: max(a, b) / min(a, b) if a and b else math.nan),
    (re.compile(r"\b(go|goes|fit|fits) into\b"), lambda a, b: b / a if a else math.nan),
)
_LESS = re.compile(r"\b(subtract\w*|take|minus|less|difference|deduct|remove)\b")
_MOST = re.compile(r"\b(largest|biggest|greatest|highest|maximum|larger|bigger|greater|higher)\b")
_LEAST = re.compile(r"\b(smallest|least|lowest|minimum|smaller|lower)\b")
_THAN = re.compile(
    r"\b(\d{1,9})(?: is)? (less|smaller|lower|more|greater|larger|bigger|higher) than (\d{1,9})\b"
)
_FEWER = ("less", "smaller", "lower")
_EVENLY = re.compile(r"\b(divisible|evenly|multiple|whole number)\b")
_DIVIDES = re.compile(r"\b(\d{1,9}) (?:divides|go into|a factor of) (\d{1,9})\b")
_LISTED = re.compile(r"\b(items?|words?|things?|listed|names?|entries)\b")
_BACK = re.compile(r"\b(revers\w*|backwards?|last to first)\b")
_PLACE = re.compile(
    r"\b(first|second|third|fourth|fifth|sixth|seventh|last|final|begins?|starts?|ends?)\b"
)
_PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
_ENDS = ("last", "final", "end", "ends")
_LETTER_AT = re.compile(
    r"\b(?:which|what|by|first|second|third|fourth|fifth|sixth|seventh|last|final|ending) letter\b"
)
_LETTERS = re.compile(r"\b(letters?|characters?)\b")
_COUNT = re.compile(r"\b(how many|how often|how long|number of|length|count|times)\b")
_LONG = re.compile(r"\b(how long is|length of) the word\b")
_VOWELS = re.compile(r"\bvowels?\b")
_CAPITALS = re.compile(
    r"\b(upper ?case|capitals|capital letters|all caps|capitalize every letter)\b"
)
_SMALL = re.compile(r"\b(lower ?case|small letters|(?:without|remove the) capitals?)\b")
_ABOUT = re.compile(r"\b(?:word|in|of|does|at|is) ([a-z]{3,})\b")
"""The word whose letters are asked for, where none is quoted."""
_NOT_ABOUT = ("the", "this", "that", "word", "letter", "letters", "vowels", "each", "are")
_MOST_CHARS = 1024
"""Characters read of a question, its end."""
_MOST_LETTERS = 400
"""Characters of a question about letters; a longer one is about something else."""
_CLOCK = re.compile(r"\b(\d{1,2}):(\d\d)\b")
_SPAN = re.compile(r"\b(\d{1,3}) (minute|hour)s?\b")
_BEFORE = re.compile(r"\b(before|earlier|ago|minus)\b")
_QUOTED = re.compile(r"[\"'“‘]([a-z]+)[\"'”’]")
_WORD = re.compile(r"[a-z]+")

NAMES = (
    "sum", "equations", "wrong_equations", "term", "spelled", "is_sum", "is_difference",
    "is_product", "yes", "yes_right", "compared", "turned", "letter", "counted", "cased",
    "clock",
)  # fmt: skip


def sums_of(
    question: str, answer: str, asked: Sequence[str], said: Sequence[str]
) -> tuple[float, ...]:
    """One number for each of NAMES.

    Args:
        asked, said: the numbers of the question, and of the answer.
    """
    question = question[-_MOST_CHARS:]
    low, told = question.lower(), answer.lower().strip(" .!\n")
    last = float(said[-1]) if said else None
    signed = -last if last is not None and told.startswith("-") and len(said) == 1 else last
    equations = _EQUATION.findall(answer)
    wrong = sum(_reckoned(one, sign, other) != float(is_) for one, sign, other, is_ in equations)
    return (
        _of_one_sum(question, signed),
        float(len(equations)),
        float(wrong),
        _of_term(question, signed),
        *_of_two(low, asked, last),
        *_of_yes(low, asked, told),
        _compared(low, asked, said),
        *_of_letters(low, answer, last),
        _of_clock(low, answer),
    )


def _verdict(right: bool) -> float:
    return 1.0 if right else -1.0


def _reckoned(one: str, sign: str, other: str) -> float:
    return _SIGNS[sign.lower()](float(one), float(other))


def _of_one_sum(question: str, last: float | None) -> float:
    sums = _SUM.findall(question)
    if len(sums) != 1 or last is None:
        return 0.0
    return _verdict(last == _reckoned(*sums[0]))


def _of_term(question: str, last: float | None) -> float:
    """Of several signs, by their precedence."""
    found = next((one for one in _TERM.finditer(question) if _HAS_SIGN.search(one[0])), None)
    if found is None or last is None or _DATE.fullmatch(found[0]):
        return 0.0
    try:
        worth = _worth(ast.parse(found[0].replace("×", "*"), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, OverflowError):
        return 0.0
    return _verdict(last == worth)


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _worth(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int(value)):
            return float(value)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return float(_OPERATORS[type(op)](_worth(left), _worth(right)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_worth(operand)
    raise ValueError("not a sum")


def _of_two(low: str, asked: Sequence[str], last: float | None) -> tuple[float, ...]:
    """What the answer is of the question's only two numbers, and whether its words ask for that."""
    if len(asked) != 2 or last is None:
        return 0.0, 0.0, 0.0, 0.0
    a, b = map(float, asked)
    spelled = 0.0
    if _LESS.search(low):
        spelled = _verdict(last == abs(a - b))
    else:
        for words, reckon in _SPELLED[::-1]:
            if words.search(low):
                spelled = _verdict(last == reckon(a, b))
                break
    return spelled, float(last == a + b), float(last == abs(a - b)), float(last == a * b)


def _of_yes(low: str, asked: Sequence[str], told: str) -> tuple[float, float]:
    """Whether it says yes (1) or no (−1), and whether that is so."""
    yes = 1.0 if told.startswith("yes") else -1.0 if told.startswith("no") else 0.0
    than, divides = _THAN.search(low), _DIVIDES.search(low)
    if than is not None:
        a, b = float(than[1]), float(than[3])
        so = a < b if than[2] in _FEWER else a > b
    elif divides is not None:
        so = bool(int(divides[1])) and int(divides[2]) % int(divides[1]) == 0
    elif len(asked) == 2 and float(asked[1]) and _EVENLY.search(low):
        so = float(asked[0]) % float(asked[1]) == 0
    else:
        return yes, 0.0
    return yes, yes if so else -yes


def _compared(low: str, asked: Sequence[str], said: Sequence[str]) -> float:
    """The greatest or the least of the question's numbers."""
    most, least = _MOST.search(low), _LEAST.search(low)
    if len(asked) < 2 or len(said) != 1 or (most is None) == (least is None):
        return 0.0
    values = list(map(float, asked))
    return _verdict(float(said[0]) == (max(values) if most else min(values)))


def _of_letters(low: str, answer: str, last: float | None) -> tuple[float, ...]:
    """Turned round; the letter at a place; a count of a word's letters; large or small letters."""
    if len(low) > _MOST_LETTERS:
        return 0.0, 0.0, 0.0, 0.0
    told = answer.strip(" .!\"'\n")
    words = _WORD.findall(low)
    about = _QUOTED.findall(low) or [w for w in _ABOUT.findall(low) if w not in _NOT_ABOUT]
    word = about[-1] if about else ""
    return (
        _turned(low, told.lower(), words),
        _letter(low, told.lower(), word),
        _counted(low, last, words, word),
        _cased(low, told),
    )


def _turned(low: str, told: str, words: Sequence[str]) -> float:
    if not _BACK.search(low):
        return 0.0
    parts = _WORD.findall(told)
    if len(parts) > 1:
        return _verdict(" ".join(parts[::-1]) in " ".join(words))
    return _verdict(bool(told) and told[::-1] in words)


def _letter(low: str, told: str, word: str) -> float:
    place = _PLACE.search(low)
    if place is None or not word or not _LETTER_AT.search(low):
        return 0.0
    name = place[1]
    at = _PLACES.index(name) if name in _PLACES else -1 if name in _ENDS else 0
    return _verdict(told == word[at : at + 1 or None])


def _counted(low: str, last: float | None, words: Sequence[str], word: str) -> float:
    if last is None or not _COUNT.search(low):
        return 0.0
    if _LISTED.search(low) and low.count(",") > 1:
        return _verdict(last == low.rpartition(":")[2].count(",") + 1)
    if not word:
        return 0.0
    if _VOWELS.search(low):
        return _verdict(last == sum(map(word.count, "aeiou")))
    single = [one for one in words if len(one) == 1 and one not in "ai"]
    if single:
        return _verdict(last == word.count(single[0]))
    asks = _LETTERS.search(low) or _LONG.search(low)
    return _verdict(last == len(word)) if asks else 0.0


def _cased(low: str, told: str) -> float:
    if _SMALL.search(low):
        return _verdict(told.islower() and told in low)
    return _verdict(told.isupper() and told.lower() in low) if _CAPITALS.search(low) else 0.0


def _of_clock(low: str, answer: str) -> float:
    """A time and a span, by the clock of twelve hours."""
    clock, span, said = _CLOCK.search(low), _SPAN.findall(low), _CLOCK.search(answer)
    if clock is None or said is None or not span:
        return 0.0
    passed = sum(int(count) * (60 if unit == "hour" else 1) for count, unit in span)
    if _BEFORE.search(low):
        passed = -passed
    at, goal = (int(found[1]) * 60 + int(found[2]) for found in (clock, said))
    return _verdict((at + passed - goal) % 720 == 0)
