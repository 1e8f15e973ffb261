"""Rules that can never decide: conditions outside of what a request can be, or covered before."""

import math
from collections.abc import Collection, Iterator

import msgspec

from policies.model import BackendRange, Policy, Range, When
from policies.problems import Lines, Problem

_DOMAINS: dict[str, tuple[float, float]] = {
    "difficulty": (0.0, 1.0),
    "quality": (0.0, 1.0),
    "budget_left": (0.0, 1.0),
    "prompt_tokens": (0.0, float("inf")),
    "turns": (0.0, float("inf")),
    "load": (0.0, float("inf")),
}
"""The least and the greatest value of each figure, both included."""
_WHOLE = ("prompt_tokens", "turns")
"""Figures that are whole numbers."""
_NO_TAGS = ("team", "key", "user")
"""Names that no tag of a request has."""


def impossible(when: When) -> Iterator[tuple[str, str]]:
    """(condition, why) for each range that no request is in."""
    for name, (least, most) in _DOMAINS.items():
        limits = getattr(when, name)
        if limits is None:
            continue
        if limits.min is not None and limits.min > most:
            yield name, f"min {limits.min:g}: matches nothing; {name} is at most {most:g}"
        elif limits.max is not None and limits.max <= least:
            yield name, f"max {limits.max:g}: matches nothing; {name} is at least {least:g}"
        elif name in _WHOLE and _no_whole_number(limits.min, limits.max):
            yield name, f"min {limits.min:g}, max {limits.max:g}: matches nothing; {name} is whole"
    for tag in when.tags or ():
        if tag in _NO_TAGS:
            yield f"tags.{tag}", f"matches nothing; no tag is called so: use the condition {tag!r}"


def _no_whole_number(low: float | None, high: float | None) -> bool:
    """Whether a range that is not empty has none; infinite ends are no matter."""
    if low is None or high is None or not math.isfinite(low) or low >= high:
        return False
    return math.ceil(low) >= high


def check_languages(policy: Policy, languages: Collection[str], lines: Lines) -> Iterator[Problem]:
    """Warnings of languages that no request is found to be in."""
    for index, rule in enumerate(policy.rules):
        path = f"rules[{index}].when.language"
        for code in rule.when.language or ():
            if code not in languages:
                message = f"{code!r}: matches nothing; known are {', '.join(sorted(languages))}"
                yield Problem(level="warning", path=path, message=message, line=lines(path))


def always(when: When) -> bool:
    """Whether it surely holds, whatever is asked: nothing is given, or nothing that can fail."""
    return _telling(when) == When()


def _telling(when: When) -> When:
    """Without the ranges that every request is in."""
    idle = {
        name: None
        for name, (least, most) in _DOMAINS.items()
        if isinstance(limits := getattr(when, name), Range)
        and (limits.min is None or limits.min <= least)
        and (limits.max is None or limits.max > most)
        and not (limits.min is None and limits.max is None)
    }
    return msgspec.structs.replace(when, **idle) if idle else when


def covered(policy: Policy) -> Iterator[tuple[int, str]]:
    """(place of a rule, name of a rule before it that matches whatever it matches)."""
    for place, rule in enumerate(policy.rules):
        for earlier in policy.rules[:place]:
            if not always(earlier.when) and covers(earlier.when, rule.when):
                yield place, earlier.name
                break


def covers(wide: When, narrow: When) -> bool:
    """Whether `wide` surely holds where `narrow` does: each of its conditions is implied."""
    wide = _telling(wide)
    for field in msgspec.structs.fields(When):
        outer, inner = getattr(wide, field.name), getattr(narrow, field.name)
        if outer is not None and (inner is None or not _implied(field.name, outer, inner)):
            return False
    return True


def _implied(name: str, outer: object, inner: object) -> bool:
    if isinstance(outer, BackendRange) and isinstance(inner, BackendRange):
        return outer.backend == inner.backend and _inside(inner, outer)
    if isinstance(outer, Range) and isinstance(inner, Range):
        return _inside(inner, outer)
    if isinstance(outer, dict) and isinstance(inner, dict):
        return all(tag in inner and set(inner[tag]) <= set(outer[tag]) for tag in outer)
    if isinstance(outer, Collection) and isinstance(inner, Collection):
        # all that `wants` names must be wanted; of other lists one entry is enough
        return set(outer) <= set(inner) if name == "wants" else set(inner) <= set(outer)
    return outer == inner


def _inside(inner: Range | BackendRange, outer: Range | BackendRange) -> bool:
    low = outer.min is None or (inner.min is not None and inner.min >= outer.min)
    high = outer.max is None or (inner.max is not None and inner.max <= outer.max)
    return low and high
