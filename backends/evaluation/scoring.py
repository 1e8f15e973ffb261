"""When an answer counts, and what else is seen in it: its JSON, its repetitions."""

import json
import re
from typing import Any, Final

from backends.evaluation.items import Item

_NUMBER: Final = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w]|\.\d)")
_FENCE: Final = re.compile(r"^```\w*\n(.*?)\n?```$", re.DOTALL)
_ROOM: Final = 48
"""Characters that a sentence around a short answer may add."""
_GRAM: Final = 4
_TIMES: Final = 3
_FEW: Final = 4
"""Words, at least, that answer an open task."""


def passes(item: Item, said: str) -> bool:
    """Whether an answer is right.

    exact: the same text, but for spaces around it, quotes, a code fence or a final full stop.
    number: the last number said is the wanted one.
    word: the first word is, in any case.
    phrase: the wanted words stand in it, as whole words in any case, with little around them.
    mentions: the wanted words stand in it, however long it is.
    json: it parses to the same value.
    fluent: it says something and does not repeat itself; where words are given, it is four words
        or more and one of those stands in it.
    """
    text = _bare(said)
    match item.match:
        case "number":
            found = _NUMBER.findall(text.replace(",", "") if "," in item.answers[0] else text)
            return bool(found) and any(float(found[-1]) == float(a) for a in item.answers)
        case "word":
            words = re.findall(r"\w+", text.lower())
            return bool(words) and words[0] in item.answers
        case "phrase":
            return any(_holds(said, a) and len(text) <= len(a) + _ROOM for a in item.answers)
        case "mentions":
            return any(_holds(said, answer) for answer in item.answers)
        case "json":
            value = parsed_json(said)
            return value is not None and any(value == json.loads(a) for a in item.answers)
        case "fluent":
            to_the_point = not item.answers or (
                len(text.split()) >= _FEW and any(_holds(said, a) for a in item.answers)
            )
            return any(map(str.isalnum, text)) and not repeats(text) and to_the_point
        case "exact":
            return any(text == _bare(answer) for answer in item.answers)


def parsed_json(said: str) -> Any:
    """The JSON object or list that an answer is; None if it is none."""
    try:
        value = json.loads(_unfenced(said))
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def repeats(text: str) -> bool:
    """Whether some four words in a row come three times or more."""
    words = text.split()
    seen: dict[tuple[str, ...], int] = {}
    for start in range(len(words) - _GRAM + 1):
        gram = tuple(words[start : start + _GRAM])
        seen[gram] = seen.get(gram, 0) + 1
        if seen[gram] >= _TIMES:
            return True
    return False


def _unfenced(text: str) -> str:
    fenced = _FENCE.match(text.strip())
    return fenced.group(1) if fenced else text.strip()


def _bare(text: str) -> str:
    bare = _unfenced(text).removesuffix(".")
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'`":
        bare = bare[1:-1]
    return bare.removesuffix(".").strip()


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text.lower()) is not None
