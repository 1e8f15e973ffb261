"""The recipe's choices, one at a time: small runs of `nano`, judged on questions none has seen.

Every variant differs from the recipe in one thing and sees the very same batches. After a few
million tokens it answers the corpus's validation questions: the share it would write exactly (each
token of the answer the likeliest, which is what greedy decoding checks), and the nats per answer
token. Runs with another seed say how much of a difference is chance.

`python -m tests.benchmarks.bench_recipe --corpus DIR --out tests/benchmarks/results/recipe.json`
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch.nn import functional as F

from backends.bundled import bundled_path
from backends.bundled.batches import Batcher
from backends.bundled.config import SPECS, TrainPlan
from backends.bundled.corpus import Task, read_tasks
from backends.bundled.model import Llama
from backends.bundled.shelves import ANSWER, Library, build_library, chat_shelf
from backends.bundled.synthetic import LESSONS, make_tasks
from backends.bundled.tokenizer import load_tokenizer
from backends.bundled.train import fresh_tasks, keep_memory
from backends.bundled.trainer import Trainer
from tests.benchmarks.environment import describe, write

PLAN: Final = TrainPlan(
    tokens=2_000_000,
    long_tokens=1024,
    short_tokens=3072,
    tune_long_row=512,
    warmup_steps=40,
    decay_fraction=0.35,
)
"""Steps of half the recipe's size, or so few tokens would be too few steps."""
TEACHER: Final = "base"
QUESTIONS: Final = 1200
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "the recipe": {},
    "the recipe, seed 2": {"seed": 2},
    "AdamW at 0.002": {"optimizer": "adamw", "matrix_adam_lr": 0.002},
    "AdamW at 0.004": {"optimizer": "adamw", "matrix_adam_lr": 0.004},
    "cosine": {"schedule": "cosine"},
    "distilled": {"teacher": TEACHER},
}


def train(library: Library, variant: dict[str, Any], plan: TrainPlan) -> Trainer:
    """Run one variant to its end."""
    changes = dict(variant)
    seed, teacher = changes.pop("seed", 1), changes.pop("teacher", None)
    plan = msgspec.structs.replace(plan, **changes)
    spec, tokenizer = SPECS["nano"], load_tokenizer(bundled_path("nano") / "tokenizer.json")
    trainer = Trainer(spec, plan, Batcher(library, plan, seed=seed), seed=seed, compiled=True)
    if teacher:
        trainer.learn_from(bundled_path(teacher), tokenizer)
    trainer.run(plan.steps)
    return trainer


@torch.no_grad()
def judge(model: Llama, tasks: Sequence[Task]) -> dict[str, float]:
    """Share of answers that are exactly right, task functions alike, and nats per answer token."""
    tokenizer = load_tokenizer(bundled_path("nano") / "tokenizer.json")
    shelf = chat_shelf(tokenizer, [[(task.prompt, task.response)] for task in tasks])
    right: dict[str, list[bool]] = defaultdict(list)
    nats = []
    for number, task in enumerate(tasks):
        tokens, kinds = shelf.document(number)
        ids = torch.from_numpy(tokens.astype(np.int64))
        wanted = torch.from_numpy(kinds[1:] == ANSWER)
        logits = model(ids[None, :-1])[0][wanted]
        targets = ids[1:][wanted]
        right[task.task.partition(":")[0]].append(bool((logits.argmax(-1) == targets).all()))
        nats.append(F.cross_entropy(logits, targets).item())
    share = statistics.mean(map(statistics.mean, right.values()))
    return {"exact": round(share, 4), "nats_per_token": round(statistics.mean(nats), 4)}


def main() -> None:
    """Run the variants named, or all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=PLAN.tokens)
    parser.add_argument("--only", nargs="*", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    plan = msgspec.structs.replace(PLAN, tokens=args.tokens)
    tokenizer = load_tokenizer(bundled_path("nano") / "tokenizer.json")
    tasks = make_tasks(args.corpus, count=fresh_tasks(plan), split="train", seed=1, shares=LESSONS)
    library = build_library(args.corpus, tokenizer, tasks, seed=1)
    questions = read_tasks(args.corpus, "valid")[:QUESTIONS]
    found = {}
    for name in args.only:
        trainer = train(library, VARIANTS[name], plan)
        found[name] = judge(trainer.model.eval(), questions) | {
            "training_seconds": round(trainer.progress.seconds)
        }
        print(name, found[name], flush=True)
    workload = (
        f"nano, {plan.tokens:,} tokens a run, the corpus's first {QUESTIONS} validation questions; "
        "one thread on shared cores"
    )
    write(args.out, describe(workload) | {"variants": found})


if __name__ == "__main__":
    main()
