"""The test side of the lessons' own generators: extraction, summaries, Headgate's docs.

The generators keep these questions out of training by their own hash; here some are frozen.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

from backends.bundled.lessons import make_lessons
from backends.evaluation.items import Item

SEED: Final = 1
_CODE: Final = re.compile(r"`([^`]+)`")


def lesson_tasks() -> Iterator[Item]:
    """JSON out of a sentence, and a paragraph in one sentence."""
    made = make_lessons(seed=SEED, split="test")
    for number, (prompt, answer) in enumerate(made["extraction"], 1):
        yield Item(
            id=f"own_extraction-{number:04}",
            prompt=prompt,
            answers=(answer,),
            match="json",
            part="lessons",
            task="own_extraction",
            difficulty=min(5, len(json.loads(answer)) + 1),
        )
    for number, (prompt, answer) in enumerate(made["summaries"], 1):
        yield Item(
            id=f"summary-{number:04}",
            prompt=prompt,
            answers=(answer,),
            part="lessons",
            task="summary",
            difficulty=4,
        )


def lesson_docs() -> Iterator[Item]:
    """Questions about Headgate in wordings that their lesson does not have.

    Right is an answer with the lesson's first piece of code, or, where it has none, the lesson's.
    """
    for number, (prompt, answer) in enumerate(make_lessons(seed=SEED, split="test")["docs"], 1):
        code = [piece for piece in _CODE.findall(answer) if piece not in prompt]
        yield Item(
            id=f"docs_lessons-{number:04}",
            prompt=prompt,
            answers=(code[0],) if code else (answer,),
            match="mentions" if code else "exact",
            part="docs_lessons",
            task="docs_lessons",
        )
