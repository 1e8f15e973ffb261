"""Fit the request classifier: `python -m gateway.routing.train --corpus DIR [--outcomes FILE]`.

Two linear heads over one set of features (gateway/routing/vectorise.py): a softmax over the
corpus's labels, which the runtime adds up to the eight tasks, and one logistic output per backend
for P(it answers well). The quality outputs are fitted on outcomes, one JSON object a line:
`{"prompt" | "messages", "scores": {"nano": 0, "small": 1}, "split"?: "train|test"}`. Without a file
of outcomes a proxy stands in, made from the synthetic tasks' difficulty, and the card says so.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from backends.evaluation.frozen import is_router_test
from backends.evaluation.outcomes import read_lines
from gateway.routing.augment import PER_TASK, own_prompts
from gateway.routing.classifier import FORMAT, TASKS, WORDS
from gateway.routing.figures import auc, expected_calibration_error, macro_f1, softmax
from gateway.routing.fit import BATCH, Matrix, Weights, fit, quantise
from gateway.routing.vectorise import (
    COUNTS,
    Vectoriser,
    WordVectors,
    counts,
    load_words,
    tokens_of,
)

BITS = 16
TRIGRAMS = False
CHARS: tuple[int, ...] = ()
DENSE_SCALE = 0.3
LABEL_L2 = 1e-5
QUALITY_L2 = 1e-5
MIN_STEPS = 200
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
UNABLE = "code,classification,creative,extraction,summarisation"
"""Tasks whose open-ended prompts the bundled models cannot answer."""
UNABLE_WEIGHT = 0.2
HERE = Path(__file__).parent
Say = Callable[[str], None]


class Row(Struct, frozen=True):
    """One prompt with its label."""

    prompt: str
    label: str
    split: str


class Outcome(Struct, frozen=True):
    """How well each backend answered one prompt, 0 to 1."""

    prompt: str
    scores: dict[str, float]
    split: str


def load_map(path: Path = HERE / "labels.toml") -> dict[str, str]:
    """Label → task; our own template families stand under `own:TASK`."""
    tasks = tomllib.loads(path.read_text(encoding="utf-8"))["tasks"]
    of = {label: task for task, labels in tasks.items() for label in labels}
    return of | {f"own:{task}": task for task in TASKS}


def load_rows(corpus: Path) -> list[Row]:
    """The corpus's prompts with their labels."""
    with gzip.open(corpus / "classifier_prompts.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Row(row["prompt"], row["label"], row["split"]) for row in rows]


def load_outcomes(path: Path) -> list[Outcome]:
    """Outcomes out of a file, .gz or not. Lines without a split get one by a hash of the prompt.

    The frozen test prompts of `models eval` are measured on, never fitted on, whatever a line says.
    """
    found = []
    for line in read_lines(path).splitlines():
        if not line.strip():
            continue
        row = json.loads(line)
        prompt = row["prompt"] if "prompt" in row else row["messages"][-1]["content"]
        split = "test" if is_router_test(prompt) else row.get("split") or _split(prompt)
        found.append(Outcome(prompt, {k: float(v) for k, v in row["scores"].items()}, split))
    return found


def proxy_outcomes(corpus: Path, rows: Sequence[Row]) -> list[Outcome]:
    """Stand-ins until the models have answered: easy synthetic tasks pass, and small talk."""
    found = []
    for split in ("train", "test"):
        with gzip.open(corpus / f"synthetic.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                scores = {
                    "nano": float(row["difficulty"] <= 1),
                    "small": float(row["difficulty"] <= 3),
                }
                found.append(Outcome(row["prompt"], scores, split))
                if len(found) % 20_000 == 0:
                    break
    for row in rows:
        if row.label in ("small_talk", "trivia", "open_question", "grade_school_math"):
            good = float(row.label == "small_talk")
            found.append(Outcome(row.prompt, {"nano": good, "small": good}, row.split))
    return found


def _split(prompt: str) -> str:
    digest = hashlib.sha256(prompt.strip().lower().encode("utf-8", "surrogatepass")).digest()
    return "test" if digest[0] < 51 else "train"


class Design:
    """Prompts as rows of one sparse matrix: n-gram buckets, the cheap counts, the words' mean."""

    def __init__(self, prompts: Sequence[str], words_file: Path) -> None:
        self._vectoriser = Vectoriser(BITS, trigrams=TRIGRAMS, chars=CHARS)
        tokens = [tokens_of(prompt) for prompt in prompts]
        frequency = np.bincount(
            np.concatenate([self._vectoriser.rows(part) for part in tokens]), minlength=1 << BITS
        )
        self.idf = (np.log((1 + len(prompts)) / (1 + frequency)) + 1).astype(np.float32)
        words, vectors = load_words(words_file)
        seen = Counter(chain.from_iterable(map(set, tokens)))
        share = np.array([seen[word] for word in words]) / len(prompts)
        self.word_weights = (1 / (1 + 100 * share)).astype(np.float32)
        self._words = WordVectors(words, vectors, self.word_weights)

    def matrix(self, prompts: Sequence[str]) -> Matrix:
        """[len(prompts), R + D] float32."""
        import scipy.sparse as sp  # type: ignore[import-untyped]

        rows, values, dense = [], [], []
        for prompt in prompts:
            tokens = tokens_of(prompt)
            found = self._vectoriser.rows(tokens)
            weights = self.idf[found]
            rows.append(found)
            values.append(weights / (np.sqrt(weights @ weights) or 1.0))
            dense.append(np.concatenate((counts(prompt, tokens), self._words.mean(tokens))))
        ends = np.cumsum([0, *map(len, rows)])
        sparse = sp.csr_matrix(
            (np.concatenate(values), np.concatenate(rows), ends), shape=(len(prompts), 1 << BITS)
        )
        block = sp.csr_matrix(np.array(dense) * DENSE_SCALE)
        return sp.hstack([sparse, block]).tocsr().astype(np.float32)


def fit_labels(x: Matrix, y: Sequence[str], *, epochs: int) -> tuple[list[str], Weights]:
    """A softmax over the labels; loosely labelled rows count less, our own more."""
    labels = sorted(set(y))
    place = {label: index for index, label in enumerate(labels)}
    targets = np.eye(len(labels), dtype=np.float32)[[place[label] for label in y]]
    weights = np.array([_weight(label) for label in y], dtype=np.float32)
    return labels, fit(x, targets, weights, choice=True, l2=LABEL_L2, epochs=epochs)


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
    corpus: Path,
    outcomes_file: Path | None,
    out: Path,
    *,
    unable: Sequence[str],
    epochs: int,
    own_per_task: int = PER_TASK,
    say: Say,
) -> dict[str, Any]:
    """Fit, quantise, measure, and write head.npz and card.json into `out`."""
    of = load_map()
    rows = load_rows(corpus)
    own = [
        Row(prompt, f"own:{task}", "train")
        for prompt, task in own_prompts(corpus, per_task=own_per_task)
    ]
    fitting = [row for row in rows if row.split == "train"] + own
    fitting = [row for row in fitting if not is_router_test(row.prompt)]
    outcomes = load_outcomes(outcomes_file) if outcomes_file else proxy_outcomes(corpus, rows)
    say(f"{len(fitting)} prompts to fit on ({len(own)} of our own), {len(outcomes)} outcomes")
    words_file = HERE / "head" / WORDS
    design = Design([row.prompt for row in fitting], words_file)
    labels, label_head = fit_labels(
        design.matrix([r.prompt for r in fitting]),
        [r.label for r in fitting],
        epochs=epochs,
    )
    say("labels fitted")
    backends = sorted({name for outcome in outcomes for name in outcome.scores})
    failing = [row.prompt for row in own if of[row.label] in unable]
    quality_heads, quality_card = _qualities(design, outcomes, failing, backends, epochs, say)
    joined = np.concatenate([label_head.weights, *(h.weights for h in quality_heads)], axis=1)
    bias = np.concatenate([label_head.bias, *(h.bias for h in quality_heads)])
    table, scale = quantise(joined[: 1 << BITS])
    label_head.weights[: 1 << BITS] = (table * scale)[:, : len(labels)]  # measure what is shipped
    valid = [row for row in rows if row.split == "valid"]
    temperature = fit_temperature(
        label_head.logits(design.matrix([row.prompt for row in valid])),
        labels,
        of,
        [of[row.label] for row in valid],
    )
    test = [row for row in rows if row.split == "test"]
    figures = evaluate_labels(design, label_head, labels, of, temperature, test)
    arrays: dict[str, Any] = {
        "rows": table,
        "rows_scale": scale,
        "idf": design.idf.astype(np.float16),
        "dense": joined[1 << BITS :] * DENSE_SCALE,
        "bias": bias,
        "word_weights": design.word_weights.astype(np.float16),
    }
    card = {
        "format": FORMAT,
        "version": _version(arrays),
        "bits": BITS,
        "trigrams": TRIGRAMS,
        "chars": list(CHARS),
        "counts": list(COUNTS),
        "labels": labels,
        "task_of": {label: of[label] for label in labels},
        "temperature": temperature,
        "backends": backends,
        "reference": REFERENCE if REFERENCE in backends else backends[-1],
        "data_sha256": _data_sha256(rows, own, outcomes),
        "rows": {"fit": len(fitting), "own": len(own), "valid": len(valid), "test": len(test)},
        "held_out": figures,
        "quality_from": "outcomes" if outcomes_file else "proxy: the synthetic tasks' difficulty",
        "assumed_failures": {"tasks": list(unable), "rows": len(failing), "share": UNABLE_WEIGHT},
        "quality": quality_card,
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "head.npz", **arrays)
    if (out / WORDS).resolve() != words_file.resolve():
        shutil.copyfile(words_file, out / WORDS)
    text = json.dumps(card, indent=1, ensure_ascii=False)
    (out / "card.json").write_text(text + "\n", encoding="utf-8")
    return card


def _qualities(
    design: Design,
    outcomes: Sequence[Outcome],
    failing: Sequence[str],
    backends: Sequence[str],
    epochs: int,
    say: Say,
) -> tuple[list[Weights], dict[str, Any]]:
    heads, figures = [], {}
    for name in backends:
        known = [o for o in outcomes if name in o.scores]
        fit_on = [o for o in known if o.split != "test"]
        test = [o for o in known if o.split == "test"] or fit_on
        scores = [o.scores[name] for o in fit_on] + [0.0] * len(failing)
        weights = np.ones(len(scores), dtype=np.float32)
        # all assumed failures together weigh a fixed share of what was measured
        weights[len(fit_on) :] = UNABLE_WEIGHT * len(fit_on) / max(1, len(failing))
        targets = np.array(scores, dtype=np.float32)[:, None]
        x = design.matrix([*(o.prompt for o in fit_on), *failing])
        # as many steps on few outcomes as on many
        passes = max(epochs, -(-MIN_STEPS * BATCH // len(fit_on)))
        head = fit(x, targets, weights, choice=False, l2=QUALITY_L2, epochs=passes)
        truth = np.array([o.scores[name] for o in test])
        logits = head.logits(design.matrix([o.prompt for o in test]))[:, 0]
        said = 1 / (1 + np.exp(-logits))
        figures[name] = {
            "fit": len(fit_on),
            "test": len(test),
            "pass_rate": round(float(truth.mean()), 4),
            "auc": _rounded(auc(said, truth)),
            "ece": _rounded(expected_calibration_error(said, truth)),
        }
        say(f"quality of {name}: {figures[name]}")
        heads.append(head)
    return heads, figures


def evaluate_labels(
    design: Design,
    head: Weights,
    labels: Sequence[str],
    of: dict[str, str],
    temperature: float,
    rows: Sequence[Row],
) -> dict[str, Any]:
    """Accuracy, macro-F1 and calibration on the 27 labels and on the 8 tasks."""
    logits = head.logits(design.matrix([row.prompt for row in rows]))
    corpus = [i for i, label in enumerate(labels) if not label.startswith("own:")]
    said_labels = [labels[corpus[i]] for i in logits[:, corpus].argmax(1)]
    gold_labels = [row.label for row in rows]
    tasks = task_probabilities(logits, labels, of, temperature)
    said = [TASKS[i] for i in tasks.argmax(1)]
    gold = [of[label] for label in gold_labels]
    hit = np.array([g == s for g, s in zip(gold, said, strict=True)])
    return {
        "labels_accuracy": _rounded(np.mean(np.array(said_labels) == np.array(gold_labels))),
        "labels_macro_f1": _rounded(macro_f1(gold_labels, said_labels)),
        "tasks_accuracy": _rounded(hit.mean()),
        "tasks_macro_f1": _rounded(macro_f1(gold, said)),
        "tasks_ece": _rounded(expected_calibration_error(tasks.max(1), hit)),
    }


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def _version(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:8]


def _data_sha256(rows: Sequence[Row], own: Sequence[Row], outcomes: Sequence[Outcome]) -> str:
    digest = hashlib.sha256()
    for row in (*rows, *own):
        digest.update(f"{row.prompt}\x00{row.label}\x00{row.split}\n".encode())
    for outcome in outcomes:
        digest.update(f"{outcome.prompt}\x00{sorted(outcome.scores.items())}\n".encode())
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit codes: 0 written, 2 a file is missing."""
    parser = argparse.ArgumentParser(prog="python -m gateway.routing.train", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with classifier_prompts")
    parser.add_argument("--outcomes", type=Path, help="JSON Lines of `models eval --outcomes`")
    parser.add_argument("--out", type=Path, default=HERE / "head", help="folder to write")
    parser.add_argument(
        "--assume-unable",
        default=UNABLE,
        help="tasks whose own open-ended prompts count as failed by every backend; '' for models "
        "that can do them (default: %(default)s)",
    )
    parser.add_argument("--epochs", type=int, default=8, help="passes over the prompts")
    chosen = parser.parse_args(arguments)
    for path in (chosen.corpus / "classifier_prompts.jsonl.gz", chosen.outcomes):
        if path is not None and not path.exists():
            print(f"{path}: no such file", file=sys.stderr)
            return 2
    unable = [task for task in chosen.assume_unable.split(",") if task]
    if not set(unable) <= set(TASKS):
        parser.error(f"--assume-unable: {chosen.assume_unable!r}: tasks are {', '.join(TASKS)}")
    card = train(
        chosen.corpus,
        chosen.outcomes,
        chosen.out,
        unable=unable,
        epochs=chosen.epochs,
        say=print,
    )
    print(json.dumps({"version": card["version"], **card["held_out"], **card["quality"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
