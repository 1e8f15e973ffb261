"""Fit the classifier's tasks: `python -m gateway.learning.tasks --corpus DIR [--out HEAD]`.

A softmax over the corpus's labels, which the runtime adds up to the eight tasks, on hashed n-grams,
counts and the words' mean (gateway/routing/vectorise.py). What it writes knows no backend yet:
`headgate policy fit --head HEAD --outcomes F --out HEAD` adds how well each of them answers.
"""

import argparse
import gzip
import json
import shutil
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from backends.evaluation.frozen import is_router_test
from gateway.learning.augment import PER_TASK, own_prompts
from gateway.learning.design import DENSE_SCALE, matrix_of
from gateway.learning.head_file import quantise, version_of, write_json
from gateway.learning.linear import Weights, fit
from gateway.routing.classifier import FORMAT, SHIPPED_HEAD, TASKS, WORDS
from gateway.routing.counts import COUNTS
from gateway.routing.figures import expected_calibration_error, macro_f1, softmax
from gateway.routing.forms import BITS as FORM_BITS
from gateway.routing.vectorise import WordVectors, gram_rows, load_words
from gateway.routing.words import Hashes, Words

BITS = 16
L2 = 1e-5
OWN_WEIGHT = 3.0
LOOSE = frozenset(
    "brainstorming classification closed_qa creative_writing general_qa information_extraction "
    "open_qa summarization".split()
)
"""Labels whose rows are dolly's: many of them stand at the wrong prompt."""
LOOSE_WEIGHT = 0.3
PLENTY = frozenset("grade_school_math open_question small_talk trivia trivia_choice".split())
"""Labels with thousands of rows of one kind: they must not drown the rest."""
PLENTY_WEIGHT = 0.5
REFERENCE = "small"
"""The backend that `difficulty` is about."""
PROMPTS = "classifier_prompts.jsonl.gz"
Say = Callable[[str], None]


class Row(Struct, frozen=True):
    """One prompt with its label."""

    prompt: str
    label: str
    split: str


def load_map() -> dict[str, str]:
    """Label → task; our own template families stand under `own:TASK`."""
    text = Path(__file__).with_name("labels.toml").read_text(encoding="utf-8")
    tasks = tomllib.loads(text)["tasks"]
    of = {label: task for task, labels in tasks.items() for label in labels}
    return of | {f"own:{task}": task for task in TASKS}


def load_rows(corpus: Path) -> list[Row]:
    """The corpus's prompts with their labels."""
    with gzip.open(corpus / PROMPTS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Row(row["prompt"], row["label"], row["split"]) for row in rows]


class Features:
    """What a head reads of a prompt, weighed by how rare it is among these prompts."""

    def __init__(self, prompts: Sequence[str], words_file: Path) -> None:
        rows: list[Hashes] = []
        seen: Counter[str] = Counter()
        for text in map(Words().read, prompts):
            rows.append(gram_rows(text, BITS))
            seen.update(set(text.tokens))
        frequency = np.bincount(np.concatenate(rows), minlength=1 << BITS)
        self.idf = (np.log((1 + len(prompts)) / (1 + frequency)) + 1).astype(np.float32)
        words, vectors = load_words(words_file)
        share = np.array([seen[word] for word in words]) / len(prompts)
        self.word_weights = (1 / (1 + 100 * share)).astype(np.float32)
        self._words = WordVectors(words, vectors, self.word_weights)

    def matrix(self, prompts: Sequence[str]) -> Any:
        """[len(prompts), R + D] float32."""
        texts = map(Words(self._words.places).read, prompts)
        return matrix_of(texts, BITS, self.idf, self._words)


def fit_labels(x: Any, y: Sequence[str], *, epochs: int) -> tuple[list[str], Weights]:
    """A softmax over the labels; loosely labelled rows count less, our own more."""
    labels = sorted(set(y))
    place = {label: index for index, label in enumerate(labels)}
    targets = np.eye(len(labels), dtype=np.float32)[[place[label] for label in y]]
    weights = np.array([_weight(label) for label in y], dtype=np.float32)
    return labels, fit(x, targets, link=softmax, l2=L2, epochs=epochs, weights=weights)


def _weight(label: str) -> float:
    if label.startswith("own:"):
        return OWN_WEIGHT
    if label in LOOSE:
        return LOOSE_WEIGHT
    return PLENTY_WEIGHT if label in PLENTY else 1.0


def task_probabilities(
    logits: NDArray[np.float64], labels: Sequence[str], of: dict[str, str], temperature: float
) -> NDArray[np.float64]:
    """[rows, 8]: label probabilities added up by task."""
    to_task = np.zeros((len(labels), len(TASKS)))
    for index, label in enumerate(labels):
        to_task[index, TASKS.index(of[label])] = 1
    return np.asarray(softmax(logits / temperature) @ to_task)


def fit_temperature(
    logits: NDArray[np.float64], labels: Sequence[str], of: dict[str, str], gold: Sequence[str]
) -> float:
    """The temperature with the least log loss on held-out tasks."""
    wanted = np.array([TASKS.index(task) for task in gold])
    grid = np.geomspace(0.3, 3.0, 47)

    def loss(temperature: float) -> float:
        p = task_probabilities(logits, labels, of, temperature)[np.arange(len(wanted)), wanted]
        return float(-np.log(np.maximum(p, 1e-12)).mean())

    return float(min(grid, key=loss))


def train(
    corpus: Path, out: Path, *, epochs: int, own_per_task: int = PER_TASK, say: Say
) -> dict[str, Any]:
    """Fit, quantise, measure, and write head.npz, words.npz and card.json into `out`."""
    of = load_map()
    rows = load_rows(corpus)
    own = [
        Row(prompt, f"own:{task}", "train")
        for prompt, task in own_prompts(corpus, per_task=own_per_task)
    ]
    fitting = [row for row in rows if row.split == "train"] + own
    fitting = [row for row in fitting if not is_router_test(row.prompt)]
    say(f"{len(fitting)} prompts to fit on ({len(own)} of our own)")
    words_file = SHIPPED_HEAD / WORDS
    features = Features([row.prompt for row in fitting], words_file)
    labels, head = fit_labels(
        features.matrix([row.prompt for row in fitting]),
        [row.label for row in fitting],
        epochs=epochs,
    )
    table, scale = quantise(head.weights[: 1 << BITS])
    head.weights[: 1 << BITS] = table * scale  # measure what is shipped
    valid, test = ([row for row in rows if row.split == split] for split in ("valid", "test"))
    temperature = fit_temperature(
        head.logits(features.matrix([row.prompt for row in valid])),
        labels,
        of,
        [of[row.label] for row in valid],
    )
    arrays: dict[str, Any] = {
        "rows": table,
        "rows_scale": scale,
        "idf": features.idf.astype(np.float16),
        # no backend yet: neither logits nor hidden units
        "forms": np.zeros((1 << FORM_BITS, 0), dtype=np.int8),
        "forms_scale": np.zeros(0, dtype=np.float32),
        "up": np.zeros((0, 0), dtype=np.float32),
        "dense": head.weights[1 << BITS :] * DENSE_SCALE,
        "bias": head.bias,
        "word_weights": features.word_weights.astype(np.float16),
    }
    card = {
        "format": FORMAT,
        "version": version_of(arrays),
        "bits": BITS,
        "counts": list(COUNTS),
        "labels": labels,
        "task_of": {label: of[label] for label in labels},
        "temperature": temperature,
        "backends": [],
        "fits": [],
        "follows": {},
        "reference": REFERENCE,
        "prompts": {"fit": len(fitting), "own": len(own), "valid": len(valid), "test": len(test)},
        "held_out": evaluate_labels(features, head, labels, of, temperature, test),
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "head.npz", **arrays)
    if (out / WORDS).resolve() != words_file.resolve():
        shutil.copyfile(words_file, out / WORDS)
    write_json(out / "card.json", card)
    return card


def evaluate_labels(
    features: Features,
    head: Weights,
    labels: Sequence[str],
    of: dict[str, str],
    temperature: float,
    rows: Sequence[Row],
) -> dict[str, Any]:
    """Accuracy, macro-F1 and calibration on the 27 labels and on the 8 tasks."""
    logits = head.logits(features.matrix([row.prompt for row in rows]))
    corpus = [i for i, label in enumerate(labels) if not label.startswith("own:")]
    said_labels = [labels[corpus[i]] for i in logits[:, corpus].argmax(1)]
    gold_labels = [row.label for row in rows]
    tasks = task_probabilities(logits, labels, of, temperature)
    said = [TASKS[i] for i in tasks.argmax(1)]
    gold = [of[label] for label in gold_labels]
    hit = np.array([g == s for g, s in zip(gold, said, strict=True)])
    figures = {
        "labels_accuracy": np.mean(np.array(said_labels) == np.array(gold_labels)),
        "labels_macro_f1": macro_f1(gold_labels, said_labels),
        "tasks_accuracy": hit.mean(),
        "tasks_macro_f1": macro_f1(gold, said),
        "tasks_ece": expected_calibration_error(tasks.max(1), hit),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit codes: 0 written, 2 a file is missing."""
    parser = argparse.ArgumentParser(prog="python -m gateway.learning.tasks", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with classifier_prompts")
    parser.add_argument("--out", type=Path, default=SHIPPED_HEAD, help="folder to write")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the prompts")
    chosen = parser.parse_args(arguments)
    if not (chosen.corpus / PROMPTS).exists():
        print(f"{chosen.corpus / PROMPTS}: no such file", file=sys.stderr)
        return 2
    card = train(chosen.corpus, chosen.out, epochs=chosen.epochs, say=print)
    print(json.dumps({"version": card["version"], **card["held_out"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
