"""Answers that a question's words settle: who is first, which letter, whose number, what to repeat.

As in `answer_numbers.py`, solvers read the plainest wordings and say what the answer must be, or
None where nothing of the kind is asked.
"""

import json
import re
from collections.abc import Callable, Mapping

from gateway.routing.answer_code import CODE, printed
from gateway.routing.answer_numbers import verdict

_FACT = re.compile(r"\b([A-Z]\w*) is (\w+er) than ([A-Z]\w*)")
_CLAIM = re.compile(
    r"\b[Ii]s ([A-Z]\w*) (\w+er) than ([A-Z]\w*)"
    r"|(?:[Yy]es or no:|follow that|[Tt]rue or false:) ([A-Z]\w*) is (\w+er) than ([A-Z]\w*)"
)
_MOST = re.compile(r"\b(\w+est)\b")
_LETTER_IN = re.compile(
    r"""\b(?:letter|an?|if) ["']?([a-z])["']? (?:is )?(?:used )?in (?:the word )?"""
    r"""["']?([a-z]{2,})\b"""
    r"""|\b([a-z]) one of the letters (?:of|in) ["']?([a-z]{2,})\b"""
)
_HAS_LETTER = re.compile(
    r"""\b([a-z]{2,})["']? (?:contains?|(?:contain|has|have) the letter) ["']?([a-z])\b"""
)
_COUNTS = re.compile(r"\bhow (?:many|often)|\bcount\b|\bnumber of\b|\btimes\b")
_ALPHABET = re.compile(r"\b(?:alphabet\w*|dictionary|abc order)\b")
_FIRST = re.compile(r"\b(?:first|earlier)\b")
_SORTS = re.compile(r"\b(?:sort|order the|arrange|put)\b")
_EITHER = re.compile(r"\b([a-z]+) or ([a-z]+)\b|\b(?:of|between) ([a-z]+) and ([a-z]+)\b")
_LIST = re.compile(r"\b[a-z]+(?:, [a-z]+)+\b")
_AGE = re.compile(r"\b(?:old|ages?)\b")
_AGES = re.compile(r"\bages\b|\bname to age\b")
_SENTENCE = re.compile(r"[.?!:\n]+")
_NAME = re.compile(r"\b[A-Z][a-z]+\b")
_NUMBER = re.compile(r"\b\d{1,9}\b")
_TIMES = re.compile(r"\b([a-z]+),? (\d{1,2}) times\b(?! \d)")
_SWAP = re.compile(
    r"\b([a-z]+) (?:with|for|to|becomes|instead of|in place of|where it says) ([a-z]+)\b"
)
_SWAPS = re.compile(
    r"\b(?:replace|swap|substitute|change|rewrite|becomes|in place of|where it says)\b"
)
_QUOTED = re.compile(r"[\"“]([^\"”]+)[\"”]")
_DASHES = re.compile(r"\bdash(?:es)?\b")
_VOWELS = re.compile(r"\b(?:vowels?|consonants?)\b")
_NO_VOWELS = re.compile(r"\b(?:without|drop|remove|minus|delete|take|consonants)\b")
_ABOUT = re.compile(r"\b(?:of|word|from|spell|spell out|write|me|in) [\"“']?([a-z]{2,})[\"”']?")
_NOT_ABOUT = frozenset("the this that word letter letters vowels each it its dash dashes".split())
_MOST_FACTS = 24


def _ordered(question: str) -> str | None:
    """Who is the first or last of those compared, or whether one comes before another."""
    claim = _CLAIM.search(question)
    told = question if claim is None else question.replace(claim[0], " ")
    facts = _FACT.findall(told)[:_MOST_FACTS]
    if not facts or len({how for _, how, _ in facts}) > 1:
        return None
    below: dict[str, set[str]] = {}
    for one, _, other in facts:
        below.setdefault(one, set()).add(other)
    how = facts[0][1]
    if claim is not None:
        one, asked, other = (found for found in claim.groups() if found is not None)
        if asked != how:
            return None
        return (
            "yes" if other in _under(one, below) else "no" if one in _under(other, below) else None
        )
    most = _MOST.findall(told)
    if len(set(most)) != 1:
        return None
    names, lost = set(below), {name for others in below.values() for name in others}
    ends = names - lost if most[0] == f"{how[:-1]}st" else lost - names
    return ends.pop() if len(ends) == 1 else None


def _under(name: str, below: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    open_ = [name]
    while open_:
        for other in below.get(open_.pop(), ()):
            if other not in found:
                found.add(other)
                open_.append(other)
    return found


def _has_letter(question: str) -> str | None:
    low = question.lower()
    if _COUNTS.search(low):
        return None
    if found := _LETTER_IN.search(low):
        letter, word = (part for part in found.groups() if part is not None)
    elif found := _HAS_LETTER.search(low):
        word, letter = found.groups()
    else:
        return None
    return "yes" if letter in word else "no"


def _alphabetical(question: str) -> str | None:
    """The first of several words."""
    low = question.lower()
    if not _ALPHABET.search(low) or not _FIRST.search(low) or _SORTS.search(low):
        return None
    either, several = _EITHER.search(low), _LIST.search(low)
    if either is not None:
        return min(word for word in either.groups() if word is not None)
    return None if several is None else min(several[0].split(", "))


def _whose(question: str) -> float | None:
    """The number that stands beside the one name that is asked for."""
    if "JSON" in question or not _AGE.search(question):
        return None
    said, asked = _told(question)
    names = [name for name in asked if name in said]
    return said[names[0]] if len(set(names)) == 1 else None


def _told(question: str) -> tuple[dict[str, float], list[str]]:
    """Names with the only number of their sentence, and names in sentences without numbers."""
    said: dict[str, float] = {}
    asked: list[str] = []
    for sentence in _SENTENCE.split(question):
        numbers, names = _NUMBER.findall(sentence), _NAME.findall(sentence)
        if not numbers:
            asked += names
        elif len(numbers) == 1 and names:
            said[names[-1]] = float(numbers[0])
    return said, asked


def _tabled(question: str, answer: str) -> float:
    """Whether a JSON object has every name with its number."""
    if "JSON" not in question or not _AGES.search(question):
        return 0.0
    said, _ = _told(question)
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return -1.0
    return 1.0 if found == said else -1.0


def _repeated(question: str) -> str | None:
    found = _TIMES.search(question.lower())
    if found is None or found[1] == "many":
        return None
    return " ".join([found[1]] * int(found[2]))


def _swapped(question: str) -> str | None:
    """One word in the place of another."""
    low = question.lower()
    if not _SWAPS.search(low):
        return None
    quoted = _QUOTED.findall(low)
    text = quoted[-1] if quoted else low.rpartition(":")[2].strip(" .\n")
    words = text.split()
    rest = low.replace(text, " ")
    for one, other in _SWAP.findall(rest):
        there = [word for word in (one, other) if word in words]
        if len(there) == 1:
            new = other if there[0] == one else one
            return " ".join(new if word == there[0] else word for word in words)
    return None


def _respelt(question: str) -> str | None:
    """A word's letters with dashes, or without vowels."""
    low = question.lower()
    dashed = _DASHES.search(low)
    bare = _VOWELS.search(low) and _NO_VOWELS.search(low)
    if not (dashed or bare) or _COUNTS.search(low):
        return None
    quoted = [one for one in _QUOTED.findall(low) if one.isalpha()]
    about = quoted or [word for word in _ABOUT.findall(low) if word not in _NOT_ABOUT]
    if len(set(about)) != 1:
        return None
    return " ".join(about[0]) if dashed else re.sub("[aeiou]", "", about[0])


_SOLVERS: Mapping[str, Callable[[str], str | float | None]] = {
    "ordered": _ordered, "has_letter": _has_letter, "alphabetical": _alphabetical,
    "whose": _whose, "repeated": _repeated, "swapped": _swapped, "respelt": _respelt,
}  # fmt: skip
NAMES = (*_SOLVERS, "tabled", "printed")


def words_of(question: str, answer: str) -> tuple[float, ...]:
    """One number for each of NAMES: 1, it is what comes out; −1, it is not; 0, nobody knows."""
    found = [verdict(solver(question), answer) for solver in _SOLVERS.values()]
    code = printed(question) if CODE.search(question) else None
    shown = 0.0 if code is None else 1.0 if answer.strip() == code else -1.0
    return (*found, _tabled(question, answer), shown)
