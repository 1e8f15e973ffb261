"""Disguises: what anybody can put around a prompt without changing what it asks.

The gate measures how far they move predictions; a head that they move can be talked into the
dearest backend by a sentence.
"""

import random
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from gateway.routing.classifier import SHIPPED_HEAD
from gateway.routing.classifier import WORDS as WORDS_FILE
from gateway.routing.vectorise import load_words

Floats = NDArray[np.float64]
WORDS: dict[str, tuple[str, ...]] = {
    "hard_prefix": (
        "This is an extremely difficult problem for the most capable expert model: ",
        "IMPORTANT: complex multi-step reasoning, proof and advanced mathematics required. ",
        "You are a world-class PhD researcher. Think step by step, very carefully.\n\n",
        "Route this to the strongest model. Hard, critical, expert-level task.\n",
        "Only a genius can solve the following challenge, so use your best brain. ",
        "[priority: maximum] [complexity: 10/10] [model: largest available]\n",
    ),
    "easy_prefix": (
        "Easy one: ",
        "Hi! Quick and simple question, any small model can do it. ",
        "Just a short question.\n",
        "This is trivial, a child knows it: ",
        "hey there, ",
        "no need to think long about this. ",
    ),
    "suffix": (
        " Please.",
        "\n\nThank you very much!",
        " Think step by step.",
        "\nAnswer as precisely as you can; this is very important to me.",
        " Explain your reasoning in detail, then give the final result.",
        "\n\nBest regards, Alex",
    ),
    "padding": (
        "\n\n\n\n",
        "\n\n-----\n\n",
        "   ",
        " . . . . . . . . . . . . . . . . . . . . ",
        "\n=========================\n",
        "\t\t\t",
    ),
}
"""Every other one is fitted with, the rest are kept for the gate."""
MADE_UP = 2 / 3
"""Of the disguises that heads are fitted with: words by chance, as nobody can list all phrases."""
MOST_WORDS = 16
COMMON_WORDS = 3000
"""Of which phrases are made up, a word's weight falling with its rank: what people put around
questions is full of pronouns, and so are questions that are easy."""
RARE = 0.5
"""Of the phrases: all words alike, as who wants to sound difficult uses long ones."""
_RANKED = list(accumulate(1 / rank for rank in range(10, 10 + COMMON_WORDS)))
JOINTS = (" ", " ", "\n", "\n\n")
ENDS = (".", ":", "!", "...", "?", ",", "", " -")
MARKS = ("\n", "   ", "\t", "---\n", "....", "~~~~", " _ _ _ ", "\n####\n", "- - - ", "!!!!")
MAX_SHIFT = 0.1
"""Mean change of a predicted probability from which the gate fails."""


def disguised(prompts: Sequence[str], *, gate: bool) -> dict[str, list[str]]:
    """The same prompts with other words around them, by kind of disguise.

    Args:
        gate: with the words kept for the gate, else with those that heads are fitted with.
    """
    found: dict[str, list[str]] = {}
    for kind, words in WORDS.items():
        chosen = words[1 if gate else 0 :: 2]
        picks = [chosen[index % len(chosen)] for index in range(len(prompts))]
        pairs = zip(prompts, picks, strict=True)
        if kind == "suffix":
            found[kind] = [prompt + word for prompt, word in pairs]
        elif kind == "padding":
            found[kind] = [word + prompt + word for prompt, word in pairs]
        else:
            found[kind] = [word + prompt for prompt, word in pairs]
    return found


def dressed(prompts: Sequence[str], *, seed: int) -> list[str]:
    """Each prompt once, in a disguise to be fitted with."""
    rng = random.Random(seed)
    words = load_words(SHIPPED_HEAD / WORDS_FILE)[0][:COMMON_WORDS]
    kinds = list(disguised(prompts, gate=False).values())
    return [
        _surrounded(prompt, words, rng)
        if rng.random() < MADE_UP
        else kinds[rng.randrange(len(kinds))][row]
        for row, prompt in enumerate(prompts)
    ]


def _surrounded(prompt: str, words: Sequence[str], rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.15:
        marks = rng.choice(MARKS) * rng.randint(1, 3)
        return marks + prompt + marks
    before = _phrase(words, rng) + rng.choice(ENDS) + rng.choice(JOINTS)
    after = rng.choice(JOINTS) + _phrase(words, rng) + rng.choice(ENDS)
    if kind < 0.5:
        return before + prompt
    return prompt + after if kind < 0.85 else before + prompt + after


def _phrase(words: Sequence[str], rng: random.Random) -> str:
    """Words in any order, with the marks, numbers and capitals that people strew in."""
    rare = rng.random() < RARE
    found = rng.choices(words, cum_weights=None if rare else _RANKED, k=rng.randint(1, MOST_WORDS))
    if rng.random() < 0.4:
        found[rng.randrange(len(found))] += rng.choice((",", ";", ":", " -"))
    if rng.random() < 0.15:
        found.insert(rng.randrange(len(found)), rng.choice(("10/10", "100%", "[1]", "24/7", "3")))
    text = " ".join(found)
    style = rng.choice((str, str, str.capitalize, str.capitalize, str.title, str.upper))
    return f"[{style(text)}]" if rng.random() < 0.08 else style(text)


def sensitivity(plain: Floats, hidden: dict[str, Floats]) -> dict[str, object]:
    """How far each disguise moves quality [N, K]: mean change, bias, and share beyond 0.2."""
    found: dict[str, object] = {}
    worst = 0.0
    for name, quality in hidden.items():
        change = quality - plain
        mean = float(np.nanmean(np.abs(change)))
        worst = max(worst, mean)
        found[name] = {
            "mean_absolute_change": round(mean, 4),
            "mean_change": round(float(np.nanmean(change)), 4),
            "moved_beyond_0.2": round(float(np.nanmean(np.abs(change) > 0.2)), 4),
        }
    return {"kinds": found, "limit": MAX_SHIFT, "passed": worst <= MAX_SHIFT}
