"""Fresh synthetic tasks from the corpus's own generator, each on its own side of the split.

A question's split is a hash of what it asks, decided by the generator itself, so rows made here
with any seed never cross into the corpus's test questions.
"""

import importlib.util
import random
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

from backends.bundled.corpus import Split, Task
from backends.bundled.errors import CorpusError

LESSONS: Final = {
    "add": 8,
    "sub": 9,
    "mul": 8,
    "div": 5,
    "expr": 8,
    "word1": 3,
    "word2": 4,
    "units": 7,
    "temp": 6,
    "string1": 12,
    "reverse": 9,
    "sortw": 9,
    "extract1": 2,
    "extract2": 8,
    "compare": 8,
    "dates": 9,
    "seq": 8,
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


def make_tasks(
    corpus: Path,
    *,
    count: int,
    split: Split,
    seed: int,
    shares: Mapping[str, int] | None = None,
) -> list[Task]:
    """Make `count` different tasks of one split, the same ones for the same seed.

    Args:
        corpus: the folder that holds `make_synthetic.py`.
        count: how many; a split too small for it yields fewer.
        split: the side of the content hash to keep.
        seed: of the generator.
        shares: how often each function is drawn, where the corpus should not decide.
    """
    module = load_generator(corpus)
    rng = random.Random(seed)
    vars(module)["R"] = rng
    functions = [entry[0] for entry in module.TASKS]
    categories = {entry[0]: entry[1] for entry in module.TASKS}
    weights = [(shares or {}).get(entry[0].__name__, entry[2]) for entry in module.TASKS]
    tasks: list[Task] = []
    seen: set[str] = set()
    misses = 0
    while len(tasks) < count and misses < 200_000:
        function = rng.choices(functions, weights)[0]
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
