"""Task functions that no training sees, in any wording: what a model can do beyond its lessons."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Final

from backends.evaluation.items import Item, Match

Made = tuple[str, str, Match, int]
"""Prompt, answer, how it is matched, difficulty."""
WORDS: Final = (
    "garden window silver bridge market orange pencil summer planet winter button candle doctor "
    "forest guitar hammer island jacket kitten letter mirror needle parrot rocket school tunnel"
).split()
FIRST: Final = "Anna Ben Carla David Emma Felix Grace Henry Isla Jack Kate Leo Maya Noah".split()
LAST: Final = "Smith Brown Garcia Davis Clark Lewis Young King Hill Green Baker Reed".split()
CITIES: Final = "Paris London Rome Berlin Madrid Oslo Cairo Tokyo Lima Boston Dublin".split()
HOSTS: Final = "example.org example.com mail.example post.example".split()


def next_number(rng: random.Random) -> Made:
    """The number after or before another."""
    size = rng.choice((19, 99, 99, 999))
    number = rng.randint(2, size)
    after = rng.random() < 0.6
    wording = rng.choice(
        ("Which number stands right {w} {n}?", "On the number line, what is just {w} {n}?")
    )
    difficulty = 1 if size < 99 else 2 if size < 999 else 3
    prompt = wording.format(w="behind" if after else "in front of", n=number)
    return prompt, str(number + (1 if after else -1)), "number", difficulty


def double_half(rng: random.Random) -> Made:
    """Twice a number, or half of an even one."""
    number = rng.randint(2, 10) if rng.random() < 0.5 else rng.randint(11, 49)
    difficulty = 1 if number <= 10 else 3
    if rng.random() < 0.5:
        wording = rng.choice(("What is the double of {n}?", "Twice {n} makes how much?"))
        return wording.format(n=number), str(2 * number), "number", difficulty
    wording = rng.choice(("What is one half of {n}?", "Cut {n} in half. How much is one half?"))
    return wording.format(n=2 * number), str(number), "number", difficulty


def letter_at(rng: random.Random) -> Made:
    """The second, third or fourth letter of a word."""
    word, place = rng.choice(WORDS), rng.randint(1, 3)
    ordinal = ("second", "third", "fourth")[place - 1]
    wording = rng.choice(
        ("Which letter is the {o} one in {w}?", 'Read "{w}" letter by letter. What is the {o}?')
    )
    return wording.format(o=ordinal, w=word), word[place], "exact", 2 if place == 1 else 3


def form_to_json(rng: random.Random) -> Made:
    """Lines of `key: value` as a JSON object."""
    first, last = rng.choice(FIRST), rng.choice(LAST)
    fields = {
        "name": f"{first} {last}",
        "city": rng.choice(CITIES),
        "age": str(rng.randint(18, 80)),
        "mail": f"{first}@{rng.choice(HOSTS)}".lower(),
    }
    keys = rng.sample(sorted(fields), rng.randint(2, 4))
    form = "\n".join(f"{key}: {fields[key]}" for key in keys)
    wording = rng.choice(
        ("{f}\nWrite this form as a JSON object of strings.", "As JSON, all strings, please:\n{f}")
    )
    answer = json.dumps({key: fields[key] for key in keys})
    return wording.format(f=form), answer, "json", len(keys) + 1


def count_up(rng: random.Random) -> Made:
    """The numbers between two bounds, in order."""
    start = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, 80)
    end = start + rng.randint(3, 6)
    wording = rng.choice(
        (
            "Write every number from {a} up to {b}, with commas between them.",
            "Start at {a} and stop at {b}: list all numbers on the way, with commas.",
        )
    )
    answer = ", ".join(map(str, range(start, end + 1)))
    return wording.format(a=start, b=end), answer, "exact", 2 if end < 10 else 3


def find_mail(rng: random.Random) -> Made:
    """The address in a sentence."""
    first, last, city = rng.choice(FIRST), rng.choice(LAST), rng.choice(CITIES)
    mail = f"{first}.{last}@{rng.choice(HOSTS)}".lower()
    text = rng.choice(
        (
            "You can reach {n} in {c} at {m} until Friday.",
            "{n} moved to {c}; please write to {m} from now on.",
            "For questions about the {c} office ask {n} ({m}).",
        )
    ).format(n=f"{first} {last}", c=city, m=mail)
    wording = rng.choice(("{t} To which mail address do I write?", "Copy the mail address: {t}"))
    return wording.format(t=text), mail, "phrase", 2


FUNCTIONS: Final[tuple[Callable[[random.Random], Made], ...]] = (
    next_number,
    double_half,
    letter_at,
    form_to_json,
    count_up,
    find_mail,
)


def unseen_items(*, each: int, seed: int) -> Iterator[Item]:
    """`each` different questions of every function, the same ones for the same seed."""
    for function in FUNCTIONS:
        rng = random.Random(f"{seed}:{function.__name__}")
        prompts: set[str] = set()
        while len(prompts) < each:
            prompt, answer, match, difficulty = function(rng)
            if prompt in prompts:
                continue
            prompts.add(prompt)
            yield Item(
                id=f"{function.__name__}-{len(prompts)}",
                prompt=prompt,
                answers=(answer,),
                match=match,
                part="unseen",
                task=function.__name__,
                difficulty=difficulty,
            )
