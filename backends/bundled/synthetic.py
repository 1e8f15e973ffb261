"""Fresh synthetic tasks from the corpus's own generator, each on its own side of the split.

A question's split is a hash of what it asks, decided by the generator itself, so rows made here
with any seed never cross into the corpus's test questions.
"""

import importlib.util
import random
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from backends.bundled.corpus import Split, Task
from backends.bundled.errors import CorpusError
from backends.bundled.vocabulary import Vocabulary

LESSONS: Final = {
    "add": 8,
    "sub": 9,
    "mul": 10,
    "div": 5,
    "expr": 10,
    "word1": 3,
    "word2": 4,
    "units": 7,
    "temp": 6,
    "string1": 13,
    "reverse": 11,
    "sortw": 9,
    "extract1": 2,
    "extract2": 9,
    "compare": 9,
    "dates": 11,
    "seq": 9,
    "numfmt": 7,
    "lists": 7,
    "classify": 4,
    "logic": 8,
    "code_out": 7,
    "code_write": 1,
    "copying": 4,
}
"""How often each function's tasks are learned from: less what is learned early, more what fails
longest, since every function counts the same when a model is judged."""
_NEW_WORDS, _NEW_NAMES, _ANY_DEGREES = 0.55, 0.45, 0.45
"""How often a vocabulary's words and names stand in for the generator's, and any degrees for its
multiples of five."""
_DEGREES: Final = (
    "Convert {c} degrees Celsius to Fahrenheit.|What is {c} C in Fahrenheit?"
    "|{c} degrees Celsius is how many degrees Fahrenheit?|Change {c} C to F."
    "|How hot is {c} Celsius in Fahrenheit?|Express {c} degrees C in degrees F."
    "|It is {c} C outside. What is that in F?|Give {c} Celsius in Fahrenheit."
).split("|")


def load_generator(corpus: Path) -> ModuleType:
    """Import `make_synthetic.py` of the corpus folder as a module of its own.

    Raises:
        CorpusError: the folder has no generator.
    """
    path = corpus / "make_synthetic.py"
    spec = importlib.util.spec_from_file_location("headgate_make_synthetic", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise CorpusError(
            f"no task generator {str(path)!r}; point --corpus at the folder that holds it"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _dress(rng: random.Random, prompt: str, names: list[str]) -> str:
    """Vary the start of a question now and then, as the corpus does."""
    if rng.random() < 0.06 and not prompt[:1].isdigit() and prompt.split()[0] not in names:
        prompt = prompt[0].lower() + prompt[1:]
    if rng.random() < 0.06 and len(prompt) < 120 and "\n" not in prompt:
        leads = ("Hi! ", "Quick question: ", "Hey, ", "Help me with this. ", "Hello. ")
        prompt = rng.choice((*leads, "Another one: ")) + prompt
    return prompt


def _degrees(rng: random.Random) -> tuple[Any, ...]:
    """Make a question as the generator's, of degrees that it never asks for."""
    celsius = 5 * rng.randint(-6, 26) + rng.randint(1, 4)
    fahrenheit = f"{celsius * 9 / 5 + 32:.1f}".removesuffix(".0")
    prompt = rng.choice(_DEGREES).format(c=celsius)
    return ("c2f", celsius), 5, prompt, f"{fahrenheit} degrees Fahrenheit"


def make_tasks(
    corpus: Path,
    *,
    count: int,
    split: Split,
    seed: int,
    shares: Mapping[str, int] | None = None,
    vocabulary: Vocabulary | None = None,
) -> list[Task]:
    """Make `count` different tasks of one split, the same ones for the same seed.

    Args:
        corpus: the folder that holds `make_synthetic.py`.
        count: how many; a split too small for it yields fewer.
        split: the side of the content hash to keep.
        seed: of the generator.
        shares: how often each function is drawn, where the corpus should not decide.
        vocabulary: words and names beside the generator's own; degrees are then any, too.
    """
    module = load_generator(corpus)
    rng = random.Random(seed)
    vars(module)["R"] = rng
    functions = [entry[0] for entry in module.TASKS]
    categories = {entry[0]: entry[1] for entry in module.TASKS}
    weights = [(shares or {}).get(entry[0].__name__, entry[2]) for entry in module.TASKS]
    own_words, own_names = getattr(module, "WORDS", []), module.NAMES
    tasks: list[Task] = []
    seen: set[str] = set()
    misses = 0
    while len(tasks) < count and misses < 200_000:
        function = rng.choices(functions, weights)[0]
        if vocabulary is not None:
            vars(module).update(
                WORDS=vocabulary.words if rng.random() < _NEW_WORDS else own_words,
                NAMES=vocabulary.names if rng.random() < _NEW_NAMES else own_names,
            )
        if vocabulary and function.__name__ == "temp" and rng.random() < _ANY_DEGREES:
            made = _degrees(rng)
        else:
            made = function(None)
        misses += 1
        if not made or module.where(made[0]) != split:
            continue
        key, difficulty, prompt, answer = made[:4]
        prompt = _dress(rng, prompt, module.NAMES)
        if prompt in seen:
            continue
        misses = 0
        seen.add(prompt)
        tasks.append(
            Task(
                prompt=prompt,
                response=made[4] if len(made) > 4 else answer,
                answer=answer,
                category=categories[function],
                difficulty=max(1, min(5, difficulty)),
                task=f"{function.__name__}:{key[0]}",
                split=split,
            )
        )
    return tasks
