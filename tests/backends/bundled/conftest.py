"""A tiny corpus, made here, and the real one where a checkout has it beside it."""

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from backends.bundled.config import ModelSpec, TrainPlan
from backends.bundled.shelves import Library, build_library
from backends.bundled.synthetic import make_tasks
from backends.bundled.tokenizer import train_tokenizer

GENERATOR = """
import hashlib, random
R = random.Random(1)
NAMES = ["Anna", "Ben"]

def add(_):
    a, b = R.randint(0, 40), R.randint(0, 40)
    return ("add", min(a, b), max(a, b)), 1, "What is %d + %d?" % (a, b), str(a + b)

TASKS = [(add, "arithmetic", 1)]

def where(key):
    v = int(hashlib.sha256(repr(key).encode()).hexdigest()[:8], 16) / 2 ** 32
    return "test" if v < .1 else "valid" if v < .3 else "train"
"""
SOURCES = ("personality-chat-friendly", "opentriviaqa", "dolly-15k-part", "gsm8k")


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as gzipped JSON lines."""
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder of a few rows of every kind."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "make_synthetic.py").write_text(GENERATOR, encoding="utf-8")
    story = "The fox ran over the hill and met a bear. They walked on together for a while. "
    for name in ("text_stories", "text_encyclopedia"):
        rows = [{"text": f"{name} {i}. {story * 8}", "source": "made"} for i in range(200)]
        write_rows(folder / f"{name}.jsonl.gz", rows)
    chats = [
        {"prompt": f"Tell {i} {s}", "response": f"Well, {i}.", "source": s, "split": "train"}
        for s in SOURCES
        for i in range(30)
    ]
    write_rows(folder / "chat.jsonl.gz", chats)
    for split in ("train", "valid", "test"):
        tasks = make_tasks(folder, count=40, split=split, seed=5)
        rows = [{name: getattr(task, name) for name in task.__struct_fields__} for task in tasks]
        write_rows(folder / f"synthetic.{split}.jsonl.gz", rows)
    return folder


@pytest.fixture(scope="session")
def corpus(tiny_corpus: Path) -> Path:
    """The real corpus where there is one (HEADGATE_CORPUS, or beside the checkout), or the tiny."""
    beside = Path(__file__).parents[4] / "shared" / "corpus"
    for folder in (os.environ.get("HEADGATE_CORPUS"), beside):
        if folder and (Path(folder) / "make_synthetic.py").is_file():
            return Path(folder)
    return tiny_corpus


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A tokenizer of the family with hardly any merges."""
    return train_tokenizer(["the fox ran over the hill"] * 3)


@pytest.fixture(scope="session")
def tiny_library(tiny_corpus: Path, tiny_tokenizer: Tokenizer) -> Library:
    """The tiny corpus, tokenized."""
    tasks = make_tasks(tiny_corpus, count=100, split="train", seed=1)
    return build_library(tiny_corpus, tiny_tokenizer, tasks, seed=1)


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """A model of the family that trains in a blink."""
    return ModelSpec(
        name="tiny",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
    )


@pytest.fixture(scope="session")
def tiny_plan() -> TrainPlan:
    """Six steps over every phase of the schedule."""
    return TrainPlan(
        tokens=6 * 512,
        long_tokens=256,
        short_tokens=256,
        long_row=64,
        tune_long_row=128,
        context=256,
        short_row=64,
        warmup_steps=2,
    )
