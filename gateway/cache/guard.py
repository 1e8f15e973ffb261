"""Is another wording really the same question? A lexical check on top of the cosine.

Embeddings put "turn on" beside "turn off" and "capital of France" beside "capital of Spain": no
threshold separates them from paraphrases. The guard refuses a match that differs in numbers,
negation, antonyms or names, or that exchanges a single content word in the same frame. It errs
towards a miss, which costs one generation; a false hit costs a wrong answer.
"""

import re
from functools import lru_cache

from msgspec import Struct

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+(?:[.,:/-]\d+)*|[-+*/^=<>%€$£]")
_NUMBER_WORDS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion first second third fourth fifth half double twice once "
    "dozen".split()
)
_NEGATIONS = frozenset(
    "not no never none nothing nobody neither nor without cannot except unless lack lacks lacking "
    "fail fails avoid stop kein keine nicht ohne nie pas sans jamais ningún nunca sin".split()
)
_ANTONYMS = (
    "on off|up down|in out|open close|open closed|opened closed|enable disable|enabled disabled|"
    "start stop|begin end|before after|left right|increase decrease|more less|most least|"
    "more fewer|high low|higher lower|highest lowest|hot cold|warm cool|big small|bigger smaller|"
    "biggest smallest|large small|larger smaller|largest smallest|long short|longer shorter|"
    "longest shortest|tall short|taller shorter|old new|old young|older younger|oldest youngest|"
    "oldest newest|first last|next previous|buy sell|add remove|add subtract|plus minus|"
    "multiply divide|push pull|lock unlock|allow deny|accept reject|true false|yes no|good bad|"
    "best worst|better worse|win lose|fast slow|faster slower|fastest slowest|early late|"
    "earlier later|earliest latest|day night|morning evening|summer winter|north south|east west|"
    "male female|man woman|boy girl|father mother|husband wife|king queen|son daughter|"
    "brother sister|import export|upload download|encode decode|encrypt decrypt|install uninstall|"
    "connect disconnect|show hide|include exclude|ascending descending|uppercase lowercase|"
    "upper lower|maximum minimum|max min|advantages disadvantages|pros cons|safe dangerous|"
    "legal illegal|possible impossible|healthy unhealthy|rich poor|cheap expensive|"
    "cheaper dearer|easy hard|easy difficult|light dark|light heavy|lighter heavier|strong weak|"
    "stronger weaker|strongest weakest|full empty|inside outside|above below|over under|"
    "forward backward|cause prevent|rise fall|give take|send receive|borrow lend|arrive depart|"
    "alive dead|birth death|born died|input output|positive negative|public private|"
    "singular plural|synonym antonym|vowels consonants|even odd|sunrise sunset|import export"
)
_OPPOSITES: dict[str, frozenset[str]] = {}
for _pair in _ANTONYMS.split("|"):
    _a, _b = _pair.split()
    _OPPOSITES[_a] = _OPPOSITES.get(_a, frozenset()) | {_b}
    _OPPOSITES[_b] = _OPPOSITES.get(_b, frozenset()) | {_a}
_STOP_WORDS = frozenset(
    "a an the this that these those is are was were be been being am do does did have has had will "
    "would can could shall should may might must i you he she it we they me him her us them my "
    "your his its our their what which who whom whose when where why how of to for with at by from "
    "as into about between through during and or but if then than so such there here please tell "
    "give say explain describe know find want like need help let just also very really quick "
    "quickly briefly short simple simply some any exactly actually currently hi hello hey thanks "
    "thank ok okay could's what's whats who's it's i'm i'd name called get show write me".split()
)
_STOP_WORDS |= frozenset("in on out off up down over under".split())
_INTERROGATIVES = frozenset("who when where why how".split())
_SUFFIXES = ("ing", "ies", "ied", "es", "ed", "s", "'s", "’s")


class Signature(Struct, frozen=True):
    """What must agree between two wordings."""

    words: frozenset[str]
    """All words, lower case."""
    numbers: tuple[str, ...]
    """In order: 'A minus B' is not 'B minus A'."""
    negations: int
    names: tuple[str, ...]
    """Words written with a capital, not at a sentence's start, in order."""
    content: frozenset[str]
    """Stems of the words that carry meaning."""
    order: tuple[str, ...]
    """Those stems, in order."""


@lru_cache(maxsize=8192)
def signature(text: str) -> Signature:
    """What of a text must agree for two texts to be one question."""
    numbers: list[str] = []
    names: list[str] = []
    order: list[str] = []
    words: set[str] = set()
    negations = 0
    previous_end = -1
    for found in _WORD.finditer(text):
        raw = found.group()
        word = raw.lower().replace("’", "'")
        at_start = previous_end < 0 or any(
            c in ".!?\n:" for c in text[previous_end : found.start()]
        )
        previous_end = found.end()
        if not raw[0].isalpha():
            numbers.append(raw.replace(",", ""))
            continue
        words.add(word)
        if word in _NUMBER_WORDS:
            numbers.append(word)
            continue
        if word in _NEGATIONS or word.endswith("n't"):
            negations += 1
            continue
        if raw[0].isupper() and word not in _STOP_WORDS and (not at_start or raw.isupper()):
            names.append(_stem(word))
        if word not in _STOP_WORDS:
            order.append(_stem(word))
    return Signature(
        words=frozenset(words),
        numbers=tuple(numbers),
        negations=negations,
        names=tuple(names),
        content=frozenset(order),
        order=tuple(order),
    )


def difference(asked: str, stored: str) -> str | None:
    """Why two wordings are not the same question, None if nothing speaks against it."""
    a, b = signature(asked), signature(stored)
    if a.numbers != b.numbers:
        return f"numbers {a.numbers} and {b.numbers}"
    if a.negations % 2 != b.negations % 2:
        return "one is negated"
    for word in a.words - b.words:
        opposite = _OPPOSITES.get(word, frozenset()) & (b.words - a.words)
        if opposite:
            return f"{word!r} and {min(opposite)!r}"
    asks_a, asks_b = a.words & _INTERROGATIVES, b.words & _INTERROGATIVES
    if asks_a and asks_b and asks_a != asks_b:
        return f"{min(asks_a)!r} and {min(asks_b)!r}"
    if _names(a, b) != _names(b, a):
        return f"names {a.names} and {b.names}"
    return _exchanged(a, b)


def _names(one: Signature, other: Signature) -> tuple[str, ...]:
    """One's names, and its words that the other writes as names (people type 'paris')."""
    either = set(one.names) | set(other.names)
    return tuple(stem for stem in one.order if stem in either)


def _exchanged(a: Signature, b: Signature) -> str | None:
    only_a, only_b = a.content - b.content, b.content - a.content
    if len(only_a) == 1 and len(only_b) == 1 and a.content & b.content:
        return f"{min(only_a)!r} in place of {min(only_b)!r}"
    if not a.content & b.content and (a.content or b.content):
        return "no content word in common"
    if a.content == b.content and len(a.order) > 1 and a.order != b.order and _compares(a):
        return "the same words in another order"
    return None


def _compares(signature: Signature) -> bool:
    """Order matters between two things that are compared or related."""
    comparing = {"than", "from", "to", "into", "versus", "vs", "over", "between"}
    return bool(signature.words & comparing) and "between" not in signature.words


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word
