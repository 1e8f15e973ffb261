"""Everyday facts in words that the lessons do not use: one task function a table."""

from collections.abc import Iterator
from typing import Final

from backends.bundled.facts_tables import (
    ANIMALS,
    CAPITALS,
    COLOURS,
    MONTHS,
    OPPOSITES,
    PLURALS,
    SHAPES,
    WEEKDAYS,
)
from backends.bundled.science_tables import (
    COUNTS,
    FOODS,
    GROUPS,
    HOMES,
    JOBS,
    ORGANS,
    UNITS,
    USES,
)
from backends.evaluation.items import Item

Asked = Iterator[tuple[str, str]]
"""Questions, each with the words that must be in its answer."""
NUMBERS: Final = "zero one two three four five six seven eight nine ten eleven twelve".split()


def _ask(wordings: str, answer: str, **words: str) -> Asked:
    for wording in wordings.split("|"):
        yield wording.format(**words), answer


def capitals() -> Asked:
    """A country's capital."""
    wordings = (
        "Can you name the capital of {x}?|What city is the capital of {x}?"
        "|Please tell me the capital city of {x}."
    )
    for country, city, _ in CAPITALS:
        yield from _ask(wordings, city, x=country)


def continents() -> Asked:
    """A country's continent."""
    wordings = "In which continent is {x}?|Tell me the continent of {x}."
    for country, _, continent in CAPITALS:
        yield from _ask(wordings, continent, x=country)


def colours() -> Asked:
    """A thing's usual colour."""
    wordings = "Please tell me the color of {x}.|What colour does {x} have?"
    for thing, colour in COLOURS:
        yield from _ask(wordings, colour, x=thing)


def animals() -> Asked:
    """An animal's young, its sound, its legs."""
    for animal, sound, young, legs in ANIMALS:
        a = ("an " if animal[0] in "aeiou" else "a ") + animal
        yield from _ask("What noise does {x} make?|What is the sound of {x}?", sound, x=a)
        yield from _ask("How do you call the baby of {x}?|What is the baby of {x}?", young, x=a)
        yield from _ask("How many legs has {x}?|What is the number of legs of {x}?", legs, x=a)


def shapes() -> Asked:
    """A shape's sides."""
    wordings = (
        "How many sides has {x}?|What is the number of sides of {x}?"
        "|Please count the sides of {x}.|Do you know how many sides {x} has?"
    )
    for shape, sides in SHAPES:
        yield from _ask(wordings, sides, x=shape)


def calendar() -> Asked:
    """What comes before and after a day or a month, and the months' lengths."""
    for unit, names in (("day", WEEKDAYS), ("month", tuple(month for month, _ in MONTHS))):
        for place, name in enumerate(names):
            after, before = names[(place + 1) % len(names)], names[place - 1]
            yield f"Which {unit} comes right after {name}?", after
            yield f"Do you know the {unit} that comes before {name}?", before
    for month, days in MONTHS:
        yield f"How many days has {month}?", days


def opposites() -> Asked:
    """A word's opposite."""
    wordings = "Which word is the opposite of {x}?|Tell me the opposite of {x}."
    for pair in OPPOSITES:
        for word, other in (pair, reversed(pair)):
            yield from _ask(wordings, other, x=word)


def plurals() -> Asked:
    """A word's plural."""
    wordings = "What is the plural form of {x}?|Tell me the plural of {x}."
    for one, many in PLURALS:
        if one != many:
            yield from _ask(wordings, many, x=one)


def bodies() -> Asked:
    """What parts of a body are for, and how many of a part there are."""
    for organ, use in ORGANS:
        yield f"People have {organ}. What can they do with them?", use
    for part, owner, count in COUNTS:
        yield f"What is the number of {part} of {owner}?", count


def nature() -> Asked:
    """Where animals live and what they eat."""
    for animals_, home in HOMES:
        yield f"What place do {animals_} live in?", _bare(home)
    for animals_, food in FOODS:
        yield f"Which food do {animals_} eat?", food


def groups() -> Asked:
    """What kind of thing something is."""
    for thing, group in GROUPS:
        yield from _ask("Tell me what kind of thing {x} is.|Of what kind is {x}?", group, x=thing)


def measures() -> Asked:
    """How many of one unit make another."""
    wordings = "What is the number of {x} in {y}?|How many {x} does {y} hold?"
    for small, large, count in UNITS:
        yield from _ask(wordings, count, x=small, y=large)


def uses() -> Asked:
    """What tools are for and what people do at work."""
    for tool, use in USES:
        yield f"What do people use {tool} for?", use
    for job, work in JOBS:
        yield f"What does {job} do at work?", work


def _bare(words: str) -> str:
    """Without the article."""
    return words.removeprefix("a ").removeprefix("an ").removeprefix("the ")


FUNCTIONS: Final = (
    capitals,
    continents,
    colours,
    animals,
    shapes,
    calendar,
    opposites,
    plurals,
    bodies,
    nature,
    groups,
    measures,
    uses,
)


def known_items() -> Iterator[Item]:
    """Every question of every table; the builder picks some."""
    for function in FUNCTIONS:
        for number, (prompt, answer) in enumerate(function(), 1):
            digits = (str(NUMBERS.index(answer)),) if answer in NUMBERS else ()
            if answer.isdecimal() and int(answer) < len(NUMBERS):
                digits = (NUMBERS[int(answer)],)
            yield Item(
                id=f"{function.__name__}-{number:03}",
                prompt=prompt,
                answers=(answer, *digits),
                match="phrase",
                part="known",
                task=function.__name__,
                difficulty=1,
            )
