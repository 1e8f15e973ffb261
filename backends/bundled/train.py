"""Train one of the bundled models: `python -m backends.bundled.train --model nano --corpus DIR`.

Exit codes: 0 done, 2 something given cannot be used (the message says what to do), 130 stopped by
Ctrl-C or SIGTERM and saved.
"""

import argparse
import contextlib
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer

from backends.bundled.batches import Batcher
from backends.bundled.config import SPECS, TrainPlan, plan_for
from backends.bundled.corpus import TEXT_FILES, read_chat, read_tasks, read_texts
from backends.bundled.errors import RecipeError
from backends.bundled.export import export_model
from backends.bundled.shelves import build_library
from backends.bundled.synthetic import LESSONS, make_tasks
from backends.bundled.tokenizer import load_tokenizer, train_tokenizer
from backends.bundled.trainer import Trainer
from backends.bundled.vocabulary import read_vocabulary

CHECKPOINT = "checkpoint.pt"
STOPPED = 130
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's `mallopt`."""
TASK_TOKENS = 100
"""Tokens of a run for each fresh task: hardly any is seen twice."""
MOST_TASKS = 2_000_000
"""More would not fit into the memory of a small machine."""


def fresh_tasks(plan: TrainPlan) -> int:
    """Say how many tasks a run of this length should draw from."""
    return min(MOST_TASKS, max(1, plan.tokens // TASK_TOKENS))


def tokenizer_texts(corpus: Path) -> Iterator[str]:
    """Yield the texts from which the tokenizer learns: a part of each kind, none held out."""
    for name in TEXT_FILES:
        yield from read_texts(corpus, name, held_out=False)[::3]
    for turn in read_chat(corpus, "train")[::2]:
        yield f"{turn.prompt}\n{turn.response}"
    for task in read_tasks(corpus, "train"):
        yield f"{task.prompt}\n{task.response}"


def get_tokenizer(corpus: Path, out: Path, given: Path | None) -> Tokenizer:
    """Load the tokenizer named, else the one in `out`, else train it there."""
    path = given or out / "tokenizer.json"
    if given is None and not path.is_file():
        tokenizer = train_tokenizer(tokenizer_texts(corpus))
        tokenizer.save(str(path))
    return load_tokenizer(path)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m backends.bundled.train", description=__doc__)
    parser.add_argument("--model", choices=sorted(SPECS), required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the corpus files")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/MODEL)")
    parser.add_argument("--tokens", type=int, help="token budget (default: the model's plan)")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json (default: train one)")
    parser.add_argument("--tasks", type=int, help="fresh tasks to make (default: enough)")
    parser.add_argument("--resume", action="store_true", help="continue from OUT/checkpoint.pt")
    parser.add_argument("--grow-from", type=Path, help="checkpoint of a smaller model to grow")
    parser.add_argument(
        "--start-from", type=Path, help="checkpoint, or model folder, to go on with"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="share of the peak learning rates")
    parser.add_argument("--schedule", choices=("stable", "cosine"), help="default: stable")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), help="default: muon")
    parser.add_argument("--teacher", type=Path, help="exported folder of a larger model to distil")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    parser.add_argument("--save-every", type=float, default=180.0, help="seconds", metavar="S")
    return parser.parse_args(argv)


def keep_memory() -> None:
    """Ask glibc to keep what a step frees for the next one.

    Else every large tensor is mapped afresh, and a sixth of a step goes into page faults.
    """
    largest = 2**31 - 1
    with contextlib.suppress(OSError, AttributeError):  # another C library: slower, no more
        libc = ctypes.CDLL("libc.so.6")
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(option, largest)


def prepare(args: argparse.Namespace, out: Path, tokenizer: Tokenizer) -> Trainer:
    """Read everything that is learned from, and set up the run: fresh, resumed or grown."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    spec = SPECS[args.model]
    given = {name: getattr(args, name) for name in ("tokens", "schedule", "optimizer")}
    changes = {name: value for name, value in given.items() if value}
    if args.rate != 1.0:
        planned = plan_for(args.model, device)
        changes |= {"muon_lr": args.rate * planned.muon_lr, "adam_lr": args.rate * planned.adam_lr}
    plan = msgspec.structs.replace(plan_for(args.model, device), **changes)
    tasks = make_tasks(
        args.corpus,
        count=args.tasks or fresh_tasks(plan),
        split="train",
        seed=args.seed,
        shares=LESSONS,
        vocabulary=read_vocabulary(args.corpus),
    )
    library = build_library(args.corpus, tokenizer, tasks, seed=args.seed)
    trainer = Trainer(
        spec,
        plan,
        Batcher(library, plan, seed=args.seed),
        seed=args.seed,
        device=device,
        compiled=args.compile,
    )
    if args.resume:
        trainer.resume(out / CHECKPOINT)
    elif args.start_from:
        trainer.start_from(args.start_from)
    elif args.grow_from:
        trainer.grow_from(args.grow_from)
    if args.teacher:
        trainer.learn_from(args.teacher, tokenizer)
    return trainer


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set, instead of ending the process in mid-step."""
    asked = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: asked.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(trainer: Trainer, checkpoint: Path, *, save_every: float) -> bool:
    """Train, saving every `save_every` seconds and at the end; say whether it got to the end."""
    saved_at = time.monotonic()

    def after_step(loss: float) -> bool:
        nonlocal saved_at
        progress = trainer.progress
        if progress.step % 50 == 0:
            print(
                f"step {progress.step}/{trainer.plan.steps} tokens {progress.tokens} "
                f"loss {loss:.4f} {progress.tokens / max(progress.seconds, 1e-9):.0f} tokens/s",
                flush=True,
            )
        if time.monotonic() - saved_at >= save_every:
            trainer.save(checkpoint)
            saved_at = time.monotonic()
        return asked.is_set()

    with stop_signals() as asked:
        trainer.run(trainer.plan.steps, after_step=after_step)
    trainer.save(checkpoint)
    return trainer.progress.step >= trainer.plan.steps


def train(args: argparse.Namespace) -> int:
    """Run the whole recipe: tokenizer, library, steps, export to OUT/export."""
    keep_memory()
    torch.set_num_threads(args.threads)
    out: Path = args.out or Path("runs") / args.model
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = get_tokenizer(args.corpus, out, args.tokenizer)
    trainer = prepare(args, out, tokenizer)
    checkpoint = out / CHECKPOINT
    if not run(trainer, checkpoint, save_every=args.save_every):
        step = trainer.progress.step
        print(f"stopped and saved at step {step}; go on with --resume", file=sys.stderr)
        return STOPPED
    export_model(checkpoint, tokenizer, out / "export")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        return train(parse_args(argv))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
