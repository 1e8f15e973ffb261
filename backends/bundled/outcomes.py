"""Who solves which prompt: the rows from which a request classifier learns difficulty."""

import json
from collections.abc import Sequence
from pathlib import Path

from backends.bundled import facts
from backends.bundled.corpus import Task, hash_share, read_tasks
from backends.bundled.generate import answer_all
from backends.bundled.load import load_model
from backends.bundled.scoring import passes
from backends.bundled.synthetic import make_tasks

FRESH_COUNT = 4000
FRESH_SEED = 977
TEST_SHARE = 0.2


def outcome_tasks(corpus: Path) -> list[Task]:
    """Return prompts no model was trained on, and none of the corpus's test prompts."""
    tasks = read_tasks(corpus, "valid")
    seen = {task.prompt for task in tasks}
    fresh = make_tasks(corpus, count=FRESH_COUNT, split="valid", seed=FRESH_SEED)
    return tasks + [task for task in fresh if task.prompt not in seen]


def write_outcomes(folders: Sequence[Path], corpus: Path, path: Path) -> None:
    """Write one row a prompt: its suite, its split, and each model's score on it, 0 or 1."""
    tasks = outcome_tasks(corpus)
    known = facts.make_facts(seed=1, split="test", exact=True)
    prompts = [task.prompt for task in tasks] + [prompt for prompt, _ in known]
    scores: list[dict[str, float]] = [{} for _ in prompts]
    for folder in folders:
        model, tokenizer = load_model(folder)
        said = [answer.text for answer in answer_all(model, tokenizer, prompts)]
        right = [passes(task, text) for task, text in zip(tasks, said, strict=False)]
        right += [
            text.strip() == want for (_, want), text in zip(known, said[len(tasks) :], strict=True)
        ]
        for score, ok in zip(scores, right, strict=True):
            score[folder.name] = float(ok)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as out:
        for index, (prompt, score) in enumerate(zip(prompts, scores, strict=True)):
            row = {
                "prompt": prompt,
                "scores": score,
                "split": "test" if hash_share(prompt) < TEST_SHARE else "train",
                "suite": "synthetic" if index < len(tasks) else "facts",
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    fresh.replace(path)
