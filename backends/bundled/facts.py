"""Everyday facts, greetings and little stories, made from tables; the corpus has few of them.

Nothing here is third-party text. A question falls on one side of the split by its own hash, so
the test part measures other wordings of known facts, not unknown facts.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final

from backends.bundled.corpus import Split, hash_share
from backends.bundled.facts_tables import (
    ANIMALS,
    CAPITALS,
    COLOURS,
    DEFINITIONS,
    IDENTITY,
    IDENTITY_LEADS,
    KINDS,
    MONTHS,
    NAMES,
    OPPOSITES,
    PLANETS,
    PLURALS,
    SHAPES,
    SMALL_TALK,
    STORY_PARTS,
    WEEKDAYS,
)
from backends.evaluation.frozen import is_frozen

TEST_SHARE: Final = 0.06
Pair = tuple[str, str]


def side(prompt: str) -> Split:
    """Say on which side of the split a question falls."""
    held_out = hash_share(prompt.strip().lower()) < TEST_SHARE or is_frozen(prompt)
    return "test" if held_out else "train"


def _ask(wordings: str, answer: str, **words: str) -> Iterator[Pair]:
    """Yield one question for each wording, all with one answer."""
    for wording in wordings.split("|"):
        yield wording.format(**words), answer.format(**words)


def _places() -> Iterator[Pair]:
    for country, city, continent in CAPITALS:
        yield from _ask(
            "What is the capital of {x}?|Name the capital of {x}.|Which city is the capital of {x}?"
            "|Tell me the capital of {x}.|capital of {x}?|What's the capital city of {x}?"
            "|Do you know the capital of {x}?|The capital of {x} is",
            "The capital of {x} is {y}.",
            x=country,
            y=city,
        )
        yield from _ask(
            "{y} is the capital of which country?|Which country has {y} as its capital?"
            "|Of which country is {y} the capital?",
            "{y} is the capital of {x}.",
            x=country,
            y=city,
        )
        yield from _ask(
            "Where is {x}?|On which continent is {x}?|Which continent is {x} in?"
            "|What continent does {x} belong to?",
            "{x} is in {y}.",
            x=country,
            y=continent,
        )


def _looks() -> Iterator[Pair]:
    for thing, colour in COLOURS:
        yield from _ask(
            "What color is {x}?|What colour is {x}?|Which color is {x}?|Tell me the color of {x}."
            "|What is the color of {x}?",
            "{X} is {y}.",
            x=thing,
            X=thing[0].upper() + thing[1:],
            y=colour,
        )
    for shape, sides in SHAPES:
        yield from _ask(
            "How many sides does {x} have?|How many sides are there in {x}?"
            "|Count the sides of {x}.|Tell me how many sides {x} has.",
            "{X} has {y} sides.",
            x=shape,
            X=shape[0].upper() + shape[1:],
            y=sides,
        )


def _animals() -> Iterator[Pair]:
    for animal, sound, young, legs in ANIMALS:
        a = ("an " if animal[0] in "aeiou" else "a ") + animal
        words = {"a": a, "A": a.capitalize(), "s": sound, "y": young, "n": legs}
        yield from _ask(
            "What sound does {a} make?|What does {a} say?|Which sound does {a} make?"
            "|How does {a} sound?",
            "{A} says {s}.",
            **words,
        )
        yield from _ask(
            "What is a baby of {a} called?|What do you call the young of {a}?"
            "|What is the young of {a} called?|Name the baby of {a}.",
            "The young of {a} is called a {y}.",
            **words,
        )
        yield from _ask(
            "How many legs does {a} have?|Count the legs of {a}.|{A} has how many legs?",
            "{A} has {n} legs.",
            **words,
        )


def _calendar() -> Iterator[Pair]:
    for names, unit in ((WEEKDAYS, "day"), (tuple(m for m, _ in MONTHS), "month")):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            yield from _ask(
                "What {u} comes after {x}?|Which {u} follows {x}?|What is the {u} after {x}?"
                "|Name the {u} after {x}.",
                "{y} comes after {x}.",
                u=unit,
                x=name,
                y=after,
            )
            yield from _ask(
                "What {u} comes before {x}?|Which {u} is before {x}?|What is the {u} before {x}?",
                "{y} comes before {x}.",
                u=unit,
                x=name,
                y=before,
            )
    for i, (month, days) in enumerate(MONTHS):
        yield from _ask(
            "How many days are in {x}?|How many days does {x} have?|How long is {x}?",
            "{x} has {y} days.",
            x=month,
            y=days,
        )
        yield from _ask(
            "Which month has the number {n}?|What is month number {n}?",
            "{x}.",
            x=month,
            n=str(i + 1),
        )


def _words() -> Iterator[Pair]:
    for one, other in OPPOSITES:
        for x, y in ((one, other), (other, one)):
            yield from _ask(
                "What is the opposite of {x}?|Give the opposite of {x}."
                "|What is the opposite of the word {x}?|Name a word that means the opposite of {x}."
                "|Opposite of {x}?",
                "The opposite of {x} is {y}.",
                x=x,
                y=y,
            )
    for one, many in PLURALS:
        yield from _ask(
            "What is the plural of {x}?|Give the plural of {x}.|Plural of {x}?"
            "|How do you say more than one {x}?",
            "The plural of {x} is {y}.",
            x=one,
            y=many,
        )
    for thing, meaning in DEFINITIONS:
        yield from _ask(
            "What is {x}?|Tell me about {x}.|Explain {x}.|Can you explain what {x} is?"
            "|Describe {x}.|Please tell me what {x} is.|Define {x}.|Do you know what {x} is?",
            meaning,
            x=thing,
        )


def _lists(rng: random.Random) -> Iterator[Pair]:
    for kind, members in KINDS:
        for count, word in enumerate(("one", "two", "three", "four", "five"), 1):
            wordings = (
                "Name {w} {k}.|List {w} {k}.|Give me {w} {k}.|Tell me {w} {k}."
                "|Can you name {w} {k}?"
            )
            for prompt, _ in _ask(wordings, "", w=word, k=kind if count > 1 else kind[:-1]):
                picked = members[:count] if rng.random() < 0.5 else rng.sample(members, count)
                text = ", ".join(picked[:-1]) + (" and " if count > 1 else "") + picked[-1]
                yield prompt, text[0].upper() + text[1:] + "."
    for i, planet in enumerate(PLANETS):
        yield from _ask(
            "Which planet is number {n} from the sun?|What is planet number {n} from the sun?",
            "{x}.",
            n=str(i + 1),
            x=planet,
        )


def make_story(rng: random.Random, hero: str) -> str:
    """Put a little story together from its parts."""
    name, friend = rng.sample(NAMES, 2)
    words = {"hero": hero, "name": name, "friend": friend}
    words |= {key: rng.choice(options) for key, options in STORY_PARTS["words"]}
    parts = [rng.choice(options) for _, options in STORY_PARTS["sentences"]]
    return " ".join(parts).format(**words)


def _stories(rng: random.Random) -> Iterator[Pair]:
    wordings = (
        "Tell me a story about a {x}.|Write a short story about a {x}.|Tell me a story."
        "|Can you tell me a story about a {x}?|Once upon a time, there was a {x}. Go on."
        "|Write a story about a little {x}.|I want to hear a story about a {x}."
    ).split("|")
    heroes = [animal for animal, *_ in ANIMALS] + ["boy", "girl", "robot", "dragon", "king"]
    for _ in range(1500):
        hero = rng.choice([h for h in heroes if h[0] not in "aeiou"])
        yield rng.choice(wordings).format(x=hero), make_story(rng, hero)


def make_facts(*, seed: int, split: Split, exact: bool = False) -> list[Pair]:
    """Make the questions of one side of the split, the same ones for the same seed.

    Args:
        seed: of the choices in lists and stories.
        split: the side to keep.
        exact: leave out lists and stories, which have many right answers.
    """
    rng = random.Random(seed)
    pairs = [*_places(), *_looks(), *_animals(), *_calendar(), *_words()]
    if not exact:
        pairs += [*_lists(rng), *_stories(rng)]
        for wordings, answer in IDENTITY:
            pairs += [
                (lead + prompt, answer) for lead in IDENTITY_LEADS for prompt in wordings.split("|")
            ]
    for wordings, answer in SMALL_TALK * (1 if exact else 8):
        pairs += list(_ask(wordings, answer))
    return [pair for pair in pairs if side(pair[0]) == split]


def _recall(rng: random.Random) -> list[Pair]:
    """Make a dialogue in which something said first is asked for later."""
    name, colour = rng.choice(NAMES), rng.choice([c for _, c in COLOURS])
    city = rng.choice([city for _, city, _ in CAPITALS])
    said, asked, answer = rng.choice(
        [
            (f"My name is {name}.", "What is my name?", f"Your name is {name}."),
            (f"Hi, I am {name}.", "Do you know my name?", f"Yes, your name is {name}."),
            (f"I'm {name}, hello!", "Who am I?", f"You are {name}."),
            (f"I like {colour}.", "Which color do I like?", f"You like {colour}."),
            (f"I live in {city}.", "Where do I live?", f"You live in {city}."),
        ]
    )
    greeting = f"Nice to meet you, {name}!" if name in said else "That is nice to know."
    return [(said, greeting), (asked, answer)]


def make_dialogues(pool: Sequence[Pair], *, count: int, seed: int) -> list[list[Pair]]:
    """Make dialogues of two to five turns from single questions, some of them with recall."""
    rng = random.Random(seed)
    dialogues = []
    for _ in range(count):
        turns = rng.sample(pool, rng.randint(1, 3) if len(pool) > 3 else len(pool))
        if rng.random() < 0.3:
            first, second = _recall(rng)
            turns = [first, *turns[: rng.randint(0, 2)], second]
        elif len(turns) < 2:
            turns = [*turns, rng.choice(pool)]
        dialogues.append(turns)
    return dialogues
