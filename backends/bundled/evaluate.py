"""Measure exported models: `python -m backends.bundled.evaluate FOLDER... --corpus DIR`.

Writes FOLDER/evaluation.json, and FOLDER/MODEL_CARD.md from it. Exit code 2: something given
cannot be used.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from backends.bundled import facts
from backends.bundled.card import write_card
from backends.bundled.corpus import TEXT_FILES, Task, read_tasks, read_texts
from backends.bundled.errors import RecipeError
from backends.bundled.generate import answer_all
from backends.bundled.load import load_model
from backends.bundled.model import Llama, num_parameters
from backends.bundled.outcomes import write_outcomes
from backends.bundled.report import Evaluation, Score
from backends.bundled.scoring import passes
from backends.bundled.tokenizer import EOS_ID, write_json

WINDOW: Final = 512
"""Tokens in a window of held-out text."""


def score_by(keys: Iterable[str], passed: Iterable[bool]) -> dict[str, Score]:
    """Group passes under their keys, in the order of the keys."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for key, ok in zip(keys, passed, strict=True):
        groups[key].append(ok)
    return {key: Score(count=len(oks), passed=sum(oks)) for key, oks in sorted(groups.items())}


@torch.inference_mode()
def bits_per_byte(model: Llama, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Return the mean bits the model needs for a byte of the texts, in windows of 512 tokens."""
    ids = [t for e in tokenizer.encode_batch_fast(list(texts)) for t in (*e.ids, EOS_ID)]
    count = (len(ids) - 1) // WINDOW
    if count == 0:
        return math.nan
    stream = torch.tensor(ids[: count * WINDOW + 1])
    nats = 0.0
    for first in range(0, count, 16):
        last = min(first + 16, count)
        inputs = stream[first * WINDOW : last * WINDOW].view(-1, WINDOW)
        targets = stream[first * WINDOW + 1 : last * WINDOW + 1]
        nats += F.cross_entropy(model(inputs).flatten(0, 1), targets, reduction="sum").item()
    num_bytes = sum(len(text.encode()) for text in texts) * (count * WINDOW / len(ids))
    return nats / math.log(2) / num_bytes


def evaluate(folder: Path, corpus: Path, *, limit: int | None = None) -> Evaluation:
    """Measure one exported folder on the corpus's test questions and held-out texts."""
    model, tokenizer = load_model(folder)
    tasks: list[Task] = read_tasks(corpus, "test")[:limit]
    answers = answer_all(model, tokenizer, [task.prompt for task in tasks])
    passed = [passes(task, answer.text) for task, answer in zip(tasks, answers, strict=True)]
    known = facts.make_facts(seed=1, split="test", exact=True)
    said = answer_all(model, tokenizer, [prompt for prompt, _ in known])
    right = [answer.text.strip() == want for (_, want), answer in zip(known, said, strict=True)]
    held_out = {name: read_texts(corpus, name, held_out=True) for name in TEXT_FILES}
    ended = [answer.ended for answer in (*answers, *said)]
    return Evaluation(
        model=folder.name,
        parameters=num_parameters(model),
        weight_bytes=(folder / "model.safetensors").stat().st_size,
        synthetic_test=Score(count=len(passed), passed=sum(passed)),
        by_difficulty=score_by((str(task.difficulty) for task in tasks), passed),
        by_category=score_by((task.category for task in tasks), passed),
        facts_test=Score(count=len(right), passed=sum(right)),
        end_of_turn=Score(count=len(ended), passed=sum(ended)),
        bits_per_byte={
            name: round(bits_per_byte(model, tokenizer, texts), 4)
            for name, texts in held_out.items()
        },
        examples=[
            (task.prompt, answer.text)
            for task, answer in list(zip(tasks, answers, strict=True))[:8]
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m backends.bundled.evaluate", description=__doc__
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the corpus files")
    parser.add_argument("--outcomes", type=Path, help="write who solves which prompt here instead")
    parser.add_argument("--limit", type=int, help="first N test tasks only; writes no files")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        if args.outcomes:
            write_outcomes(args.folders, args.corpus, args.outcomes)
            return 0
        for folder in args.folders:
            found = evaluate(folder, args.corpus, limit=args.limit)
            print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
            if args.limit is None:
                write_json(folder / "evaluation.json", msgspec.to_builtins(found))
                write_card(folder)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
