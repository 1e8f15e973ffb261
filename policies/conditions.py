"""`when = {…}` as a list of small closures: made once per policy, asked once per request.

Each check answers (holds, why) where why names the condition, the request's value and what the
policy asks for. Checks never raise.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct

from policies.model import BackendCard, BackendRange, BudgetState, Facts, Hours, Range, When

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ANY = "*"
"""A target that stands for every backend."""


class Situation(Struct, frozen=True):
    """What a check may look at."""

    facts: Facts
    cards: Mapping[str, BackendCard]
    budget: BudgetState
    now: datetime


Check = Callable[[Situation], tuple[bool, str]]


def compile_when(when: When) -> list[Check]:
    """One check per condition that is given, in the order of the struct's fields."""
    checks: list[Check] = []
    for name, value_of in _LISTS:
        wanted = getattr(when, name)
        if wanted is not None:
            checks.append(_member(name, tuple(wanted), value_of))
    for name, number_of in _RANGES:
        limits = getattr(when, name)
        if limits is not None:
            checks.append(_within(name, limits, number_of))
    if when.load is not None:
        checks.append(_backend_figure("load", when.load, lambda s, card: card.load))
    if when.quality is not None:
        checks.append(
            _backend_figure(
                "quality", when.quality, lambda s, card: s.facts.features.quality.get(card.name)
            )
        )
    for tag, values in (when.tags or {}).items():
        checks.append(_tag(tag, tuple(values)))
    if when.wants is not None:
        checks.append(_wants(frozenset(when.wants)))
    if when.hours is not None:
        checks.append(_hours(when.hours))
    return checks


_LISTS: tuple[tuple[str, Callable[[Situation], str | None]], ...] = (
    ("task", lambda s: s.facts.features.task),
    ("team", lambda s: s.facts.team),
    ("key", lambda s: s.facts.key),
    ("user", lambda s: s.facts.user),
    ("model", lambda s: s.facts.model),
    ("language", lambda s: s.facts.features.language),
)
_RANGES: tuple[tuple[str, Callable[[Situation], float]], ...] = (
    ("difficulty", lambda s: s.facts.features.difficulty),
    ("prompt_tokens", lambda s: s.facts.features.prompt_tokens),
    ("turns", lambda s: s.facts.features.turns),
    ("budget_left", lambda s: s.budget.left),
)


def _member(name: str, wanted: tuple[str, ...], value_of: Callable[[Situation], Any]) -> Check:
    text = ", ".join(wanted)
    yes, no = f"in [{text}]", f"not in [{text}]"
    allowed = frozenset(wanted)

    def check(s: Situation) -> tuple[bool, str]:
        value = value_of(s)
        holds = value in allowed
        return holds, f"{name} {value} {yes if holds else no}"

    return check


def describe(low: float | None, high: float | None) -> str:
    """A half-open range in words."""
    if low is None:
        return "a number" if high is None else f"< {high:g}"
    return f">= {low:g}" if high is None else f"in [{low:g}, {high:g})"


def _inside(value: float, low: float | None, high: float | None) -> bool:
    # NaN compares false with everything, so it is inside no range that has a limit
    return (low is None or value >= low) and (high is None or value < high)


def _within(name: str, limits: Range, number_of: Callable[[Situation], float]) -> Check:
    low, high = limits.min, limits.max
    text = describe(low, high)

    def check(s: Situation) -> tuple[bool, str]:
        value = number_of(s)
        holds = _inside(value, low, high)
        return holds, f"{name} {value:g} {'is' if holds else 'is not'} {text}"

    return check


def named(target: str, cards: Mapping[str, BackendCard]) -> Sequence[BackendCard]:
    """The backends that a tier, a backend, `backend:NAME` or `*` stands for; maybe none."""
    if target == ANY:
        return list(cards.values())
    if target.startswith("backend:"):
        card = cards.get(target[8:])
        return [] if card is None else [card]
    of_tier = [card for card in cards.values() if card.tier == target]
    if of_tier:
        return of_tier
    card = cards.get(target)
    return [] if card is None else [card]


def _backend_figure(
    name: str,
    limits: BackendRange,
    figure_of: Callable[[Situation, BackendCard], float | None],
) -> Check:
    target, low, high = limits.backend, limits.min, limits.max
    text = describe(low, high)

    def check(s: Situation) -> tuple[bool, str]:
        seen = []
        for card in named(target, s.cards):
            value = figure_of(s, card)
            if value is None:
                continue
            if _inside(value, low, high):
                return True, f"{name} of {card.name} {value:.3g} is {text}"
            seen.append(f"{card.name} {value:.3g}")
        if not seen:
            return False, f"{name} of {target} is unknown"
        return False, f"{name} of {', '.join(seen)} is not {text}"

    return check


def _tag(tag: str, wanted: tuple[str, ...]) -> Check:
    text = ", ".join(wanted)

    def check(s: Situation) -> tuple[bool, str]:
        value = s.facts.tags.get(tag)
        holds = value in wanted
        return holds, f"tag {tag} {value} {'in' if holds else 'not in'} [{text}]"

    return check


def _wants(wanted: frozenset[str]) -> Check:
    def check(s: Situation) -> tuple[bool, str]:
        missing = wanted - s.facts.features.wants
        if missing:
            return False, f"does not want {', '.join(sorted(missing))}"
        return True, f"wants {', '.join(sorted(wanted))}"

    return check


def minutes(clock: str) -> int | None:
    """HH:MM as minutes after midnight; 24:00 is the end of the day; None if it is no time."""
    hour, colon, minute = clock.partition(":")
    digits = hour.isascii() and minute.isascii() and hour.isdecimal() and minute.isdecimal()
    if not (colon and digits and 1 <= len(hour) <= 2 and len(minute) == 2):
        return None
    total = int(hour) * 60 + int(minute)
    return total if int(minute) < 60 and total <= 24 * 60 else None


def time_zone(name: str) -> tzinfo | None:
    """An IANA time zone; None if this system knows none of that name."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not a relative path; a folder
        return None


def _hours(hours: Hours) -> Check:
    zone = time_zone(hours.tz)
    start, end = minutes(hours.from_), minutes(hours.to)
    days = None if hours.days is None else frozenset(hours.days)
    text = f"{hours.from_}-{hours.to} {hours.tz}" + (
        f" on {','.join(hours.days or [])}" * (days is not None)
    )
    if zone is None or start is None or end is None:
        return lambda s: (False, f"hours {text} is no window")
    begin, stop = start, end

    def check(s: Situation) -> tuple[bool, str]:
        local = local_time(s.now, zone)
        at = local.hour * 60 + local.minute
        today = local.weekday()
        if begin < stop:
            inside, day = begin <= at < stop, today
        elif at >= begin:
            inside, day = True, today
        else:  # after midnight the window belongs to the day on which it began
            inside, day = at < stop, (today - 1) % 7
        holds = inside and (days is None or DAYS[day] in days)
        return (
            holds,
            f"{DAYS[today]} {at // 60:02}:{at % 60:02} {'in' if holds else 'not in'} {text}",
        )

    return check


def local_time(now: datetime, zone: tzinfo) -> datetime:
    """`now` in `zone`; a time without a zone counts as UTC."""
    aware = now if now.tzinfo is not None else now.replace(tzinfo=UTC)
    try:
        return aware.astimezone(zone)
    except OverflowError:  # at the ends of the calendar: a week further in has the same hours
        return (aware + timedelta(days=7 if aware.year < 5000 else -7)).astimezone(zone)
