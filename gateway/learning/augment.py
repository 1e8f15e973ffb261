"""Prompts of our own, for tasks that the corpus knows in few wordings only. Training time only.

Each task has patterns with slots; slots are filled from word lists here and from passages of the
corpus's encyclopaedia and stories. Seeded: the same prompts on every run. The hand-written prompts
in the tests are never read here.

`python -m gateway.learning.augment --corpus DIR --backends nano,small,base --out F` writes those of
open-ended tasks as outcomes that every one of the backends failed, for `policy fit --practice F`:
no suite can mark a poem or a program, and a head that never saw one takes it for an easy question.
"""

import argparse
import gzip
import json
import random
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from policies.model import Task

PER_TASK = 2400
SEED = 20
UNABLE: tuple[Task, ...] = ("code", "classification", "creative", "extraction", "summarisation")
"""Tasks whose open-ended prompts the bundled models cannot answer."""
ASSUMED_EACH = 200
HERE = Path(__file__).parent


def own_prompts(corpus: Path, *, per_task: int = PER_TASK) -> Iterator[tuple[str, str]]:
    """(prompt, task), each prompt once, the same on every run."""
    lists = tomllib.loads((HERE / "augment.toml").read_text(encoding="utf-8"))
    slots: dict[str, list[str]] = lists["slots"] | {"passage": _passages(corpus)}
    rng = random.Random(SEED)
    for task, patterns in lists["patterns"].items():
        seen: set[str] = set()
        for _ in range(per_task * 3):
            if len(seen) == per_task:
                break
            prompt = _dress(_fill(rng.choice(patterns), slots, rng), rng)
            if prompt not in seen:
                seen.add(prompt)
                yield prompt, task


def _passages(corpus: Path, count: int = 4000) -> list[str]:
    """One to three sentences each, out of the encyclopaedia and the stories."""
    found: list[str] = []
    for name in ("text_encyclopedia", "text_stories"):
        with gzip.open(corpus / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for index, line in enumerate(file):
                if index == count // 2:
                    break
                text = json.loads(line)["text"]
                body = text.split("\n", 1)[-1].replace("\n", " ")
                sentences = [part for part in body.split(". ") if len(part) > 20]
                size = 1 + index % 3
                if sentences:
                    start = index % max(1, len(sentences) - size)
                    found.append(". ".join(sentences[start : start + size])[:500].rstrip(".") + ".")
    return found


def _fill(pattern: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Replace each {slot} with one of its words; slots may hold slots."""
    for _ in range(24):
        start = pattern.find("{{")
        if start < 0:
            break
        end = pattern.index("}}", start)
        word = rng.choice(slots[pattern[start + 2 : end]])
        pattern = pattern[:start] + word + pattern[end + 2 :]
    return pattern


def _dress(prompt: str, rng: random.Random) -> str:
    """Now and then a polite opening, lower case, or no final mark: as people type."""
    roll = rng.random()
    if roll < 0.06:
        prompt = rng.choice(("please ", "can you ", "could you ", "I need you to ", "pls ")) + (
            prompt[0].lower() + prompt[1:]
        )
    elif roll < 0.10:
        prompt += rng.choice((" please", " Thanks!", " thank you", " Keep it short."))
    if rng.random() < 0.15:
        prompt = prompt.lower()
    if rng.random() < 0.15:
        prompt = prompt.rstrip(".?!")
    return prompt


def assumed_failures(
    corpus: Path, backends: Sequence[str], tasks: Sequence[str], *, per_task: int = ASSUMED_EACH
) -> Iterator[dict[str, object]]:
    """Rows of outcomes that every backend failed."""
    for prompt, task in own_prompts(corpus, per_task=per_task):
        if task in tasks:
            yield {"prompt": prompt, "scores": dict.fromkeys(backends, 0.0), "suite": "assumed"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit codes: 0 written, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m gateway.learning.augment", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the corpus files")
    parser.add_argument("--backends", required=True, help="their names, with commas")
    parser.add_argument("--unable", default=",".join(UNABLE), help="tasks (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .jsonl.gz")
    chosen = parser.parse_args(arguments)
    unable = chosen.unable.split(",")
    if not set(unable) <= set(get_args(Task)):
        parser.error(f"--unable: {chosen.unable!r}: tasks are {', '.join(get_args(Task))}")
    rows = assumed_failures(chosen.corpus, chosen.backends.split(","), unable)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    chosen.out.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
