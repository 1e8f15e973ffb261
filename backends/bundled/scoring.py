"""When an answer to a synthetic task counts as right."""

import re
from typing import Final

from backends.bundled.corpus import Task

FINAL_NUMBER: Final = re.compile(r"The answer is (-?\d+(?:\.\d+)?)\.?\s*$")


def passes(task: Task, said: str) -> bool:
    """Compare what a model said with the task's answer, exactly.

    A word problem shows its steps, so its final number is what counts.
    """
    if task.category == "word_problem":
        found = FINAL_NUMBER.search(said)
        return found is not None and found.group(1) == task.answer
    return said.strip() == task.answer
