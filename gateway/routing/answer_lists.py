"""Answers that a question's list or text settles: sorted, turned, repeated, picked out of.

As in `answer_numbers.py`; what these ask for is compared to the letter, but for blanks around it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_COMMAS = re.compile(r"(?<![\w-])[\w-]+(?:, (?:and )?[\w-]+)+")
_QUOTED = re.compile(r"[\"“]([^\"”]+)[\"”]")
_NUMBER = re.compile(r"-?\d{1,9}")
_SORT = re.compile(r"\b(?:sort|order|arrange|put)\b")
_FALLING = re.compile(r"\b(?:(?:largest|biggest|highest|greatest) (?:to|first)|descending)\b")
_RISING = re.compile(
    r"\b(?:(?:smallest|lowest|least) (?:to|first)|ascending|alphabetical(?:ly)?|abc)\b"
)
_BACK = re.compile(
    r"\b(?:revers\w*|backwards?|back to front|last to first|from the end|opposite order"
    r"|last word (?:comes )?first)\b"
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "last")
_ORDINAL = re.compile(rf"\b({'|'.join(_ORDINALS)})\b")
_FIRST = re.compile(r"\b(?:is|comes|first) first\b|\bfirst word\b")
_PICKS = re.compile(r"\b(?:item|word|thing|entry|name|what|which|pick|element)\b")
_LETTERS = re.compile(r"\bletters?\b")
_LONGEST = re.compile(r"\b(?:longest|most letters)\b")
_SHORTEST = re.compile(r"\b(?:shortest|fewest letters)\b")
_JSON = re.compile(r"\bjson (?:list|array)\b")
_BULLETS = re.compile(r"\b(?:bullets?|bullet points?|bulleted|own line with a dash)\b")
_ECHO = re.compile(
    r"\b(?:repeat|echo|copy|please type|say exactly|give back|write the following)\b"
)
_SPAN = re.compile(
    r"\b(?:every|all(?: the)?|the) numbers?\b.*?\bfrom (\d{1,4}) (?:up )?to (\d{1,4})\b"
    r"|\bstart at (\d{1,4}) and stop at (\d{1,4})\b"
)
_MOST_COUNTED = 100


def _items(low: str) -> list[str]:
    """The list with the most items that stands between commas."""
    found = max(_COMMAS.findall(low), key=lambda part: part.count(","), default="")
    return [item.removeprefix("and ") for item in found.split(", ")] if found else []


def _text(low: str) -> str:
    """What is quoted, or stands behind the last colon; empty without."""
    quoted = _QUOTED.findall(low)
    if quoted:
        return str(quoted[-1])
    return low.rpartition(":")[2].strip(" .\n") if ":" in low else ""


def _sorted(low: str, items: Sequence[str]) -> str | None:
    falling, rising = _FALLING.search(low), _RISING.search(low)
    if len(items) < 2 or (falling is None) == (rising is None) or not _SORT.search(low):
        return None
    if _FIRST.search(low):
        return None
    numbers = all(map(_NUMBER.fullmatch, items))
    found = sorted(items, key=int if numbers else str, reverse=falling is not None)
    return ", ".join(found)


def _turned(low: str, items: Sequence[str]) -> str | None:
    words = _text(low).split()
    if len(words) < 2 or items or not _BACK.search(low):
        return None
    return " ".join(words[::-1])


def _placed(low: str, items: Sequence[str]) -> str | None:
    """The item at a place."""
    places = set(_ORDINAL.findall(low))
    if len(items) < 3 or len(places) != 1 or _LETTERS.search(low) or _RISING.search(low):
        return None
    if not _PICKS.search(low) or _BACK.search(low):
        return None
    at = _ORDINALS.index(places.pop())
    return items[-1] if at == len(_ORDINALS) - 1 else items[at] if at < len(items) else None


def _longest(low: str, items: Sequence[str]) -> str | None:
    """The one with the most, or fewest, letters; None where several have."""
    most, least = _LONGEST.search(low), _SHORTEST.search(low)
    if len(items) < 2 or (most is None) == (least is None):
        return None
    wanted = (max if most else min)(map(len, items))
    found = [item for item in items if len(item) == wanted]
    return found[0] if len(found) == 1 else None


def _echoed(low: str, items: Sequence[str]) -> str | None:
    return (_text(low) or None) if _ECHO.search(low) and " times" not in low else None


def _bullets(low: str, items: Sequence[str]) -> str | None:
    return "\n".join(f"- {item}" for item in items) if items and _BULLETS.search(low) else None


def _counted_up(low: str, items: Sequence[str]) -> str | None:
    found = _SPAN.search(low)
    if found is None or "comma" not in low:
        return None
    first, last = (int(part) for part in found.groups() if part is not None)
    if not 0 <= last - first < _MOST_COUNTED:
        return None
    return ", ".join(map(str, range(first, last + 1)))


_SOLVERS: Mapping[str, Callable[[str, Sequence[str]], str | None]] = {
    "sorted": _sorted, "words_turned": _turned, "placed": _placed, "longest": _longest,
    "echo": _echoed, "bullets": _bullets, "counted_up": _counted_up,
}  # fmt: skip
NAMES = (*_SOLVERS, "json_list")


def lists_of(question: str, answer: str) -> tuple[float, ...]:
    """One number for each of NAMES: 1, it is what comes out; −1, it is not; 0, nobody knows."""
    low, said = question.lower(), answer.strip(" .\n").lower()
    items = _items(low)
    found = [solver(low, items) for solver in _SOLVERS.values()]
    told = [0.0 if one is None else 1.0 if said == one else -1.0 for one in found]
    return (*told, _json_list(low, items, said))


def _json_list(low: str, items: Sequence[str], said: str) -> float:
    if not items or not _JSON.search(low):
        return 0.0
    try:
        found: Any = json.loads(said)
    except (ValueError, RecursionError):
        return -1.0
    return 1.0 if found == list(items) else -1.0
