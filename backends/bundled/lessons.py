"""Lessons beside the corpus: science, Headgate's own docs, extraction to JSON, summaries.

As in `facts`, a question falls on one side of the split by its own hash, so that the test part
asks in other words or about other people. Answers to extraction and summaries follow from the text.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from backends.bundled.corpus import Split
from backends.bundled.docs_tables import COMMANDS, MEANINGS, TASKS, TERMS
from backends.bundled.facts import Pair, side
from backends.bundled.facts_tables import CAPITALS, COLOURS, NAMES
from backends.bundled.science_tables import (
    COUNTS,
    FOODS,
    GROUPS,
    HOMES,
    JOBS,
    ORGANS,
    SCIENCE,
    UNITS,
    USES,
)

Table = list[tuple[str, ...]]

_FACTS: Final[list[tuple[Table, str, str]]] = [
    (
        ORGANS,
        "What do we use our {0} for?|What are our {0} for?|What do people do with their {0}?"
        "|Why do we need our {0}?|Tell me what our {0} are good for.",
        "We use our {0} to {1}.",
    ),
    (
        COUNTS,
        "How many {0} does {1} have?|How many {0} are there in {1}?|Count the {0} of {1}."
        "|Tell me how many {0} {1} has.|{1}: how many {0}?|Do you know how many {0} {1} has?",
        "{1} has {2} {0}.",
    ),
    (
        UNITS,
        "How many {0} are in {1}?|How many {0} make {1}?|How many {0} are there in {1}?"
        "|{1} has how many {0}?|Tell me how many {0} are in {1}.|What is {1} in {0}?",
        "There are {2} {0} in {1}.",
    ),
    (
        HOMES,
        "Where do {0} live?|What is the home of {0}?|In what place do {0} live?"
        "|Tell me where {0} live.|Where can I find {0}?",
        "The home of {0} is {1}.",
    ),
    (
        FOODS,
        "What do {0} eat?|What is the food of {0}?|Tell me what {0} eat.|What do {0} feed on?"
        "|What should I know about the food of {0}?",
        "They eat {1}.",
    ),
    (
        GROUPS,
        "What kind of thing is {0}?|What is {0}: which group?|To which group does {0} belong?"
        "|Which kind is {0}?|Classify {0}.",
        "{0} is a kind of {1}.",
    ),
    (
        USES,
        "What is {0} used for?|What do you do with {0}?|What can I do with {0}?|Why use {0}?"
        "|What is the use of {0}?|Tell me what {0} is for.",
        "You use {0} to {1}.",
    ),
    (
        JOBS,
        "What does {0} do?|What is the job of {0}?|Tell me what {0} does.|What is the work of {0}?"
        "|Explain the job of {0}.",
        "{0} {1}.",
    ),
]
_DOCS: Final[list[tuple[list[tuple[str, str]], str]]] = [
    (
        COMMANDS,
        "How do I {0}?|How can I {0}?|Which command lets me {0}?|What is the command to {0}?"
        "|I want to {0}. What do I type?|Tell me how to {0}.|With Headgate, how do I {0}?"
        "|What must I run to {0}?|Please show me how to {0}.|Headgate: {0}"
        "|Is there a command to {0}?|I would like to {0}. How?|Can I {0}?|How does one {0}?",
    ),
    (
        TASKS,
        "How do I {0}?|How can I {0}?|I want to {0}. What do I do?|Tell me how to {0}."
        "|With Headgate, how do I {0}?|What must I do to {0}?|Please show me how to {0}."
        "|Headgate: {0}|I would like to {0}. How?|Can I {0}?|How does one {0}?"
        "|What is the way to {0}?",
    ),
    (
        MEANINGS,
        "What does {0} mean?|What is {0}?|What does {0} do?|Explain {0}.|What is {0} for?"
        "|Tell me about {0}.|In Headgate, what is {0}?|What does {0} say?|How do I read {0}?"
        "|What can I learn from {0}?|I see {0}. What is it?",
    ),
    (
        TERMS,
        "What is {0}?|Explain {0}.|In Headgate, what is {0}?|Tell me what {0} is."
        "|What does Headgate mean by {0}?|Can you explain {0}?|Define {0}.|Describe {0}."
        "|What is {0} in Headgate?",
    ),
]
_FINDS: Final = (
    "Which {0} {1}?|Name the {0} that {1}.|What is the {0} that {1}?|I look for the {0} that {1}."
    "|Is there a {0} that {1}?|In Headgate, which {0} {1}?|Tell me the {0} that {1}."
)
"""Questions from what a thing does to its name."""
_NOUNS: Final = (("header", "header"), ("Set ", "setting"), ("model `", "model name"))
"""What an answer names, by a word that it has."""
_OTHER_VERBS: Final = {"see": "shows", "get": "gives"}
_MONTHS: Final = "January February March April May June July August October November".split()
_JOBS: Final = [job.removeprefix("a ") for job, _ in JOBS]
_THINGS: Final = "lamp chair book bag cup clock hat shirt pen desk phone ball coat mirror".split()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _facts() -> Iterator[Pair]:
    for table, wordings, answer in _FACTS:
        for row in table:
            for wording in wordings.split("|"):
                yield _sentence(wording.format(*row)), _sentence(answer.format(*row))
    for questions, answer in SCIENCE:
        for question in questions.split("/"):
            small = question[0].lower() + question[1:]
            leads = (question, f"Tell me: {small}", f"Do you know: {small}", question.lower())
            yield from ((lead, answer) for lead in leads)


def _docs() -> Iterator[Pair]:
    for lines, wordings in _DOCS:
        for topic, answer in lines:
            for wording in wordings.split("|"):
                yield _sentence(wording.format(topic)), answer
    for noun, does, answer in _finds():
        for wording in _FINDS.split("|"):
            yield wording.format(noun, does), answer
        if does.startswith("says "):
            yield f"Where do I read {does[5:]}?", answer
            yield f"Which {noun} tells me {does[5:]}?", answer


def _finds() -> Iterator[tuple[str, str, str]]:
    """Yield what kind of thing does what, and the answer that names it: the tables, backwards."""
    for topic, answer in COMMANDS:
        yield "command", _third_person(topic), answer
    for topic, answer in TASKS:
        noun = next((noun for mark, noun in _NOUNS if mark in answer), None)
        if noun:
            yield noun, _third_person(topic), answer
    for name, meaning in MEANINGS:
        verb, _, rest = meaning.removeprefix("It ").partition(" ")
        does = f"{verb} {rest.partition(':')[0].rstrip('.')}"
        noun = "header" if name.startswith("x-") else "path" if name.startswith("/") else "word"
        if verb != "is":
            yield noun, does, f"The {noun} `{name}` {does}."


def _third_person(action: str) -> str:
    """Turn what a user wants to do, "see the costs", into what does it, "shows the costs"."""
    verb, _, rest = action.partition(" ")
    if verb in _OTHER_VERBS:
        return f"{_OTHER_VERBS[verb]} {rest}"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies {rest}"
    return f"{verb}{'es' if verb.endswith(('ch', 'sh', 'o', 'x', 's')) else 's'} {rest}"


def _person(rng: random.Random) -> tuple[str, dict[str, Any]]:
    name, age = rng.choice(NAMES), rng.randint(18, 80)
    city, job = rng.choice(CAPITALS)[1], rng.choice(_JOBS)
    text = rng.choice(
        [
            f"{name} is {age} years old, works as a {job} and lives in {city}.",
            f"My friend {name} lives in {city}. {name} is a {job} and is {age} years old.",
            f"At {age}, {name} still works as a {job} in {city}.",
            f"In {city} there is a {job} called {name}, who is {age}.",
        ]
    )
    return text, {"name": name, "age": age, "city": city, "job": job}


def _order(rng: random.Random) -> tuple[str, dict[str, Any]]:
    name, count, price = rng.choice(NAMES), rng.randint(2, 20), rng.randint(1, 90)
    item = f"{rng.choice(COLOURS)[1]} {rng.choice(_THINGS)}"
    text = rng.choice(
        [
            f"{name} ordered {count} {item}s for {price} dollars each.",
            f"Please send {count} {item}s to {name}. Each costs {price} dollars.",
            f"The order of {name}: {count} {item}s at {price} dollars.",
            f"For {price} dollars each, {name} bought {count} {item}s.",
        ]
    )
    return text, {"customer": name, "item": item, "quantity": count, "price": price}


def _event(rng: random.Random) -> tuple[str, dict[str, Any]]:
    kind = rng.choice(("meeting", "concert", "party", "lesson", "market", "game"))
    day, month = rng.randint(1, 28), rng.choice(_MONTHS)
    city, hour = rng.choice(CAPITALS)[1], rng.randint(1, 11)
    text = rng.choice(
        [
            f"The {kind} is in {city} on {month} {day} at {hour} o'clock.",
            f"On {month} {day} there will be a {kind} in {city}. It begins at {hour} o'clock.",
            f"Come to {city} for the {kind}! It starts at {hour} o'clock on {month} {day}.",
        ]
    )
    return text, {"event": kind, "city": city, "date": f"{month} {day}", "hour": hour}


def _extraction(rng: random.Random) -> Pair:
    text, found = rng.choice((_person, _order, _event))(rng)
    keys = rng.sample(list(found), rng.randint(2, len(found)))
    listed = ", ".join(keys[:-1]) + " and " + keys[-1]
    wording = rng.choice(
        [
            "Extract {k} as JSON: {t}",
            "Give me {k} from this text as JSON. {t}",
            "Read the text and write {k} as a JSON object. {t}",
            "Return JSON with the keys {k}. Text: {t}",
            "{t}\nWrite {k} as JSON.",
            "Turn this into JSON with {k}: {t}",
            "Which {k} does this text give? Answer in JSON. {t}",
        ]
    )
    return wording.format(k=listed, t=text), json.dumps({key: found[key] for key in keys})


def _summary(rng: random.Random) -> Pair:
    name, friend = rng.sample(NAMES, 2)
    place = rng.choice("market park river museum library beach forest station school".split())
    day = rng.choice("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
    thing = rng.choice(_THINGS)
    first = rng.choice(
        [
            f"On {day} {name} went to the {place}.",
            f"It was {day}, and {name} walked to the {place}.",
            f"{name} had waited for {day} and went to the {place} early.",
        ]
    )
    second = rng.choice(
        [
            "The sun was shining and there were many people.",
            "It was cold, and a strong wind blew.",
            "The way was long, but the weather was good.",
            "There was music, and children were laughing.",
        ]
    )
    action, brief = rng.choice(
        [
            (f"There {name} found an old {thing} and took it home.", f"found an old {thing}"),
            (f"{name} looked for a new {thing} and bought one.", f"bought a new {thing}"),
            (f"By mistake {name} left a {thing} there.", f"lost a {thing}"),
            (f"There {name} met {friend}, an old friend.", f"met {friend}"),
            (f"There {name} helped {friend} to carry a {thing}.", f"helped {friend}"),
        ]
    )
    last = rng.choice(
        [
            f"In the evening {name} was tired but happy.",
            "At home there was soup and bread.",
            f"Later {name} told everybody about it.",
        ]
    )
    wording = rng.choice(
        [
            "Summarize this in one sentence: {t}",
            "Give a short summary. {t}",
            "What happens in this text? {t}",
            "Sum up this paragraph: {t}",
            "{t}\nSummarize the text.",
            "Write one sentence about what happens: {t}",
        ]
    )
    text = " ".join((first, second, action, last))
    return wording.format(t=text), f"On {day} {name} went to the {place} and {brief}."


def _some(make: Callable[[random.Random], Pair], count: int, rng: random.Random) -> list[Pair]:
    return [make(rng) for _ in range(count)]


def make_lessons(*, seed: int, split: Split) -> dict[str, list[Pair]]:
    """Make the questions of one side of the split by kind, the same ones for the same seed."""
    rng = random.Random(seed)
    made = {
        "science": list(_facts()),
        "docs": list(_docs()),
        "extraction": _some(_extraction, 12_000, rng),
        "summaries": _some(_summary, 12_000, rng),
    }
    return {kind: [p for p in pairs if side(p[0]) == split] for kind, pairs in made.items()}
