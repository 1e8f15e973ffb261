"""Answers that a question's numbers settle: totals, series, units, shares, dates, numerals.

Each solver reads a question's plainest words and says what its answer must be, or None where
nothing of the kind is asked. `solved` compares; what is said beside the number does not count.
"""

import datetime
import math
import re
from calendar import monthrange
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

Numbers = Sequence[float]
_LIST = re.compile(r"-?\d{1,9}(?:,? and -?\d{1,9}|, ?-?\d{1,9})+")
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,6})?")
_TOTAL = re.compile(r"\b(sum|total|add|together)\b")
_PARITY = re.compile(r"\b(even|odd)\b")
_SERIES = re.compile(r"\b(next|sequence|series|pattern|follows?|continue)\b")
_DOUBLE = re.compile(r"\b(twice|double)\b")
_HALF = re.compile(r"\bhalf\b")
_BESIDE = re.compile(r"\b(behind|after|follows|before|in front of) (\d{1,9})\b")
_UNITS: Mapping[str, tuple[str, float]] = {
    "millisecond": ("time", 1e-3), "second": ("time", 1.0), "minute": ("time", 60.0),
    "hour": ("time", 3600.0), "day": ("time", 86400.0), "week": ("time", 604800.0),
    "month": ("months", 1.0), "year": ("months", 12.0),
    "millimeter": ("length", 1.0), "mm": ("length", 1.0), "centimeter": ("length", 10.0),
    "cm": ("length", 10.0), "meter": ("length", 1e3), "kilometer": ("length", 1e6),
    "km": ("length", 1e6), "inch": ("feet", 1.0), "foot": ("feet", 12.0), "yard": ("feet", 36.0),
    "milligram": ("mass", 1.0), "gram": ("mass", 1e3), "kilogram": ("mass", 1e6),
    "kg": ("mass", 1e6), "tonne": ("mass", 1e9), "milliliter": ("volume", 1.0),
    "ml": ("volume", 1.0), "liter": ("volume", 1e3), "cent": ("money", 1.0),
    "dollar": ("money", 100.0), "item": ("count", 1.0), "dozen": ("count", 12.0),
    "byte": ("bytes", 1.0), "kilobyte": ("bytes", 1e3), "megabyte": ("bytes", 1e6),
    "ounce": ("pounds", 1.0), "pound": ("pounds", 16.0),
}  # fmt: skip
_PLURALS = {"inches": "inch", "feet": "foot"}
_UNIT = re.compile(rf"\b(inches|feet|(?:{'|'.join(_UNITS)})s?)\b")
_AMOUNT = re.compile(rf"\b({_NUMBER.pattern}) (inches|feet|(?:{'|'.join(_UNITS)})s?)\b")
_CELSIUS = re.compile(rf"({_NUMBER.pattern}) ?(?:°|degrees )?(?:celsius|c)\b")
_FAHRENHEIT = re.compile(rf"({_NUMBER.pattern}) ?(?:°|degrees )?(?:fahrenheit|f)\b")
_ROUND = re.compile(r"\b(?:round|rounded|nearest|closest)\b")
_TO = re.compile(r"\b(10{1,6})s?\b")
_PERCENT = re.compile(rf"({_NUMBER.pattern}) ?(?:%|percent) of ({_NUMBER.pattern})")
_ROMAN = re.compile(r"\b[MDCLXVI]+\b")
_ROMANS = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
    (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip
_WORTH = {letter: size for size, letter in _ROMANS}
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_IN_WORDS = re.compile(r"\b(?:(?:in|into|as|using|only) words|spell out)\b")
_SPELT = re.compile(
    rf"\b(?:(?:{'|'.join(_ONES + _TENS[2:])}|hundred|thousand|and)(?:[ -]|\b)){{1,12}}"
)
_MONTHS = (
    "january february march april may june july august september october november december"
).split()
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_DATE = re.compile(rf"\b({'|'.join(_MONTHS)}) (\d{{1,2}}), (\d{{4}})\b")
_MONTH = re.compile(rf"\b({'|'.join(_MONTHS)}) (\d{{4}})\b")
_WEEKDAY = re.compile(rf"\b({'|'.join(_DAYS)})\b")
_ASKS_DAY = re.compile(r"\b(?:week ?day|day of the week|(?:which|what|name the|know the) day)\b")
_ASKS_DAYS = re.compile(r"\b(?:how many days|number of days|days (?:of|in))\b")
_BESIDE_DAY = re.compile(rf"\b(?:after|before|follows) ({'|'.join(_DAYS)})\b(?!.*\d)")
_SPAN = re.compile(r"\b(\d{1,4}) days?\b")
_BACK = re.compile(r"\b(?:before|earlier|ago|was it)\b")
_FIRST_WORD = ("yes", "no", *_DAYS)
"""Expected answers that others may follow: Saturday comes after Friday."""
_FILLING = re.compile(r"^(?:it is|it's|that is|the answer is)\b|[^a-z0-9 ]+|\band\b")
_MOST = 999_999
"""That is read out of words, and written in them."""
Expected = float | str | tuple[float, ...]
NEAR = 1e-6


def _total(low: str, listed: Numbers) -> Expected | None:
    return sum(listed) if len(listed) > 2 and _TOTAL.search(low) else None


def _parity(low: str, listed: Numbers) -> Expected | None:
    """Those of a list, or yes and no of a single number."""
    found = _PARITY.search(low)
    if found is None:
        return None
    odd = found[1] == "odd"
    if listed:
        return tuple(value for value in listed if value % 2 == odd)
    single = _NUMBER.findall(low)
    return ("yes" if float(single[0]) % 2 == odd else "no") if len(single) == 1 else None


def _next(low: str, listed: Numbers) -> Expected | None:
    """Of a series with equal steps, ratios or second steps, or of sums of the two before."""
    if len(listed) < 4 or not _SERIES.search(low):
        return None
    steps = [b - a for a, b in pairwise(listed)]
    bends = {b - a for a, b in pairwise(steps)}
    if bends == {0.0}:
        return listed[-1] + steps[-1]
    if all(a + b == c for a, b, c in zip(listed, listed[1:], listed[2:], strict=False)):
        return listed[-2] + listed[-1]
    if all(listed) and len({b / a for a, b in pairwise(listed)}) == 1:
        return listed[-1] * listed[-1] / listed[-2]
    return listed[-1] + steps[-1] + bends.pop() if len(bends) == 1 else None


def _scaled(low: str, listed: Numbers) -> Expected | None:
    """Twice or half of the only number."""
    twice, half = _DOUBLE.search(low), _HALF.search(low)
    found = _NUMBER.findall(low)
    if len(found) != 1 or (twice is None) == (half is None):
        return None
    return float(found[0]) * (2.0 if twice else 0.5)


def _neighbour(low: str, listed: Numbers) -> Expected | None:
    """The number beside the only one that is named."""
    found = _BESIDE.search(low)
    if found is None or len(_NUMBER.findall(low)) != 1 or "number" not in low:
        return None
    return float(found[2]) + (-1.0 if found[1] in ("before", "in front of") else 1.0)


def _unit(name: str) -> tuple[str, float]:
    return _UNITS[_PLURALS.get(name) or (name if name in _UNITS else name[:-1])]


def _converted(low: str, listed: Numbers) -> Expected | None:
    """One amount in another unit; in hours and minutes where both are asked for."""
    amounts = _AMOUNT.findall(low)
    if len(amounts) != 1 or len(_NUMBER.findall(low)) != 1:
        return None
    amount, name = float(amounts[0][0]), amounts[0][1]
    kind, size = _unit(name)
    others = list(dict.fromkeys(u for u in _UNIT.findall(low) if _unit(u) != (kind, size)))
    if others == ["hours"] and "hours and minutes" in low and name.startswith("minute"):
        return (amount // 60, amount % 60)
    if len(others) != 1 or _unit(others[0])[0] != kind:
        return None
    return amount * size / _unit(others[0])[1]


def _degrees(low: str, listed: Numbers) -> Expected | None:
    warm = "fahrenheit" in low or re.search(r"\bf\b", low)
    cold = "celsius" in low or re.search(r"\bc\b", low)
    if not (warm and cold):
        return None
    celsius, fahrenheit = _CELSIUS.search(low), _FAHRENHEIT.search(low)
    if celsius is not None:
        return float(celsius[1]) * 9 / 5 + 32
    return None if fahrenheit is None else (float(fahrenheit[1]) - 32) * 5 / 9


def _rounded(low: str, listed: Numbers) -> Expected | None:
    steps, numbers = _TO.findall(low), _NUMBER.findall(low)
    if not steps or len(numbers) != 2 or not _ROUND.search(low):
        return None
    numbers.remove(steps[-1])
    step = float(steps[-1])
    return math.floor(float(numbers[0]) / step + 0.5) * step


def _share(low: str, listed: Numbers) -> Expected | None:
    found = _PERCENT.search(low)
    return None if found is None else float(found[1]) * float(found[2]) / 100


def _in_words(low: str, listed: Numbers) -> Expected | None:
    """A number written out, or read."""
    numbers = _NUMBER.findall(low)
    if len(numbers) == 1 and numbers[0].isdigit() and _IN_WORDS.search(low):
        return worded(int(numbers[0])) if int(numbers[0]) <= _MOST else None
    if numbers or not re.search(r"\b(?:digits?|number)\b", low):
        return None
    said = max(_SPELT.finditer(low), key=lambda found: len(found[0]), default=None)
    return None if said is None else _read(said[0])


def worded(value: int) -> str:
    """In words, blanks between them; below a million."""
    if value < 20:
        return _ONES[value]
    if value < 100:
        return _TENS[value // 10] + (f" {_ONES[value % 10]}" if value % 10 else "")
    size, name = (1000, "thousand") if value >= 1000 else (100, "hundred")
    rest = f" {worded(value % size)}" if value % size else ""
    return f"{worded(value // size)} {name}{rest}"


def _read(text: str) -> float | None:
    total = part = 0
    words = [word for word in re.split(r"[ -]+", text) if word and word != "and"]
    for word in words:
        if word in _ONES:
            part += _ONES.index(word)
        elif word in _TENS:
            part += 10 * _TENS.index(word)
        elif word == "hundred":
            part *= 100
        else:
            total, part = (total + part) * 1000, 0
    return float(total + part) if words else None


def _numeral(question: str) -> Expected | None:
    """A Roman numeral, or what one is worth."""
    if not re.search(r"roman|\bnumber\b|\bdigits\b", question, re.IGNORECASE):
        return None
    numbers = _NUMBER.findall(question)
    if len(numbers) == 1 and re.search("roman", question, re.IGNORECASE):
        return roman(int(numbers[0])) if numbers[0].isdigit() and int(numbers[0]) < 4000 else None
    told = [one for one in _ROMAN.findall(question) if len(one) > 1 or "oman" in question]
    if numbers or len(told) != 1:
        return None
    sizes = [_WORTH[letter] for letter in told[0]]
    return float(sum(a if a >= b else -a for a, b in pairwise([*sizes, 0])))


def roman(value: int) -> str:
    """As a Roman numeral."""
    found = ""
    for size, letters in _ROMANS:
        found += letters * (value // size)
        value %= size
    return found


def _calendar(low: str, listed: Numbers) -> Expected | None:
    """The weekday of a date, or some days from another; the days of a month."""
    month = _MONTH.search(low)
    if month is not None and _ASKS_DAYS.search(low):
        return float(monthrange(int(month[2]), _MONTHS.index(month[1]) + 1)[1])
    date, day, span = _DATE.search(low), _WEEKDAY.findall(low), _SPAN.findall(low)
    if not _ASKS_DAY.search(low) and not (date and " fall" in low):
        return None
    if date is not None:
        try:
            at = datetime.date(int(date[3]), _MONTHS.index(date[1]) + 1, int(date[2]))
        except ValueError:
            return None
        return _DAYS[at.weekday()]
    beside = _BESIDE_DAY.search(low)
    if len(set(day)) != 1 or len(set(span)) > 1 or not (span or beside):
        return None
    off = int(span[0]) if span else 1
    off = -off if _BACK.search(low) else off
    return _DAYS[(_DAYS.index(day[0]) + off) % 7]


_SOLVERS: Mapping[str, Callable[[str, Numbers], Expected | None]] = {
    "total": _total, "parity": _parity, "next": _next, "scaled": _scaled,
    "neighbour": _neighbour, "converted": _converted, "degrees": _degrees, "rounded": _rounded,
    "share": _share, "in_words": _in_words, "calendar": _calendar,
}  # fmt: skip
NAMES = (*_SOLVERS, "numeral")


def numbers_of(question: str, answer: str) -> tuple[float, ...]:
    """One number for each of NAMES: 1, it is what comes out; −1, it is not; 0, nobody knows."""
    low = question.lower()
    found = _LIST.search(low)
    listed = [] if found is None else [float(one) for one in re.findall(r"-?\d+", found[0])]
    solved = [solver(low, listed) for solver in _SOLVERS.values()]
    return tuple(verdict(expected, answer) for expected in (*solved, _numeral(question)))


def verdict(expected: Expected | None, answer: str) -> float:
    """Whether an answer says what is expected: its last number, all of them, or the very words."""
    if expected is None:
        return 0.0
    if isinstance(expected, str):
        said = " ".join(_FILLING.sub(" ", answer.lower()).split())
        part = said
        if expected in _FIRST_WORD:
            part = said.partition(" ")[0]
        return 1.0 if part == expected.lower() else -1.0
    told = [float(one) for one in _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer))]
    if isinstance(expected, tuple):
        return 1.0 if tuple(told) == expected else -1.0
    right = bool(told) and math.isclose(told[-1], expected, rel_tol=NEAR, abs_tol=NEAR)
    return 1.0 if right else -1.0
