"""Files of outcomes with a known rule: topics that the weak model fails, the strong one masters."""

import json
import random
from pathlib import Path
from typing import Any

EASY = ("the colour of grass", "a greeting for Anna", "the day after Monday", "a word for happy")
HARD = ("an integral of sine", "the proof of Euclid", "a compiler for Lisp", "the orbit of Mars")
OPENINGS = ("Tell me", "I would like to know", "Explain", "Write down", "Give me", "What about")
PLACES = ("Lima", "Oslo", "Cairo", "Quito", "Perth", "Delhi", "Paris", "Tunis", "Seoul", "Kyiv")
FILLERS = ("in detail", "for a friend", "before lunch", "while it rains", "with care", "quickly")


def rows(
    count: int = 400, *, weak: str = "cheap-one", strong: str = "dear-one", seed: int = 3
) -> Any:
    """Prompts of two kinds, their lengths unrelated to the kind; 10 % of the scores are noise."""
    rng = random.Random(seed)
    found = []
    for index in range(count):
        hard = rng.random() < 0.5
        topic = rng.choice(HARD if hard else EASY)
        words = [rng.choice(OPENINGS), topic, "in", rng.choice(PLACES), str(rng.randint(0, 10**6))]
        words += [*rng.sample(FILLERS, rng.randint(0, 4)), rng.choice(PLACES)]
        noise = rng.random() < 0.1
        scores = {weak: float(hard == noise), strong: float(rng.random() < 0.95)}
        found.append({"id": index, "prompt": " ".join(words), "scores": scores})
    return found


def write(path: Path, lines: Any) -> Path:
    """The lines as JSON Lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
