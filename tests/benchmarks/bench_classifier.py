"""The request classifier: accuracy beside TF-IDF with logistic regression, and its time.

Three tables: the corpus's held-out prompts (27 labels, and the 8 tasks they map to), prompts
written by hand in other wordings (never trained on), and milliseconds by prompt length. The
baseline is fitted here, on the same split, so both stand in one run.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.learning.outcomes import read_outcomes
from gateway.learning.tasks import Row, load_map, load_rows, task_probabilities
from gateway.routing.classifier import TASKS, Classifier
from gateway.routing.features import CHARS_PER_TOKEN
from gateway.routing.figures import auc as area_under_curve
from gateway.routing.figures import expected_calibration_error, macro_f1
from tests.benchmarks.environment import describe, write

ROOT = Path(__file__).parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
HANDWRITTEN = ROOT / "tests" / "gateway" / "routing" / "handwritten_prompts.jsonl"
LENGTHS = (10, 100, 1000, 10_000)
REPEATS = 400


def accuracy(gold: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro-F1."""
    hits = sum(g == s for g, s in zip(gold, said, strict=True))
    return {
        "accuracy": round(hits / len(gold), 4),
        "macro_f1": round(macro_f1(gold, said), 4),
    }


def measure_held_out(classifier: Classifier, test: Sequence[Row]) -> dict[str, Any]:
    """The shipped head, through the code that serves requests, on the corpus's test prompts."""
    of = load_map()
    labels: list[str] = classifier.card["labels"]
    corpus = [i for i, label in enumerate(labels) if not label.startswith("own:")]
    read = classifier.words.read
    logits = np.array([classifier.outputs(read(row.prompt))[0][: len(labels)] for row in test])
    said = [labels[corpus[i]] for i in logits[:, corpus].argmax(1)]
    tasks = task_probabilities(
        logits.astype(np.float64), labels, of, classifier.card["temperature"]
    )
    said_tasks = [TASKS[i] for i in tasks.argmax(1)]
    gold = [row.label for row in test]
    gold_tasks = [of[label] for label in gold]
    hit = np.array([g == s for g, s in zip(gold_tasks, said_tasks, strict=True)])
    return {
        "prompts": len(test),
        "labels": accuracy(gold, said),
        "tasks": accuracy(gold_tasks, said_tasks)
        | {"ece": round(expected_calibration_error(tasks.max(1), hit), 4)},
    }


def measure_baseline(train: Sequence[Row], test: Sequence[Row], *, tuned: bool) -> dict[str, Any]:
    """TF-IDF with logistic regression: as it comes, or with word pairs and a better C."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    of = load_map()
    options = {"ngram_range": (1, 2), "sublinear_tf": True, "min_df": 2} if tuned else {}
    vectoriser = TfidfVectorizer(**options)
    x = vectoriser.fit_transform([row.prompt for row in train]).astype(np.float32)
    x_test = vectoriser.transform([row.prompt for row in test]).astype(np.float32)
    found: dict[str, Any] = {"tfidf": {k: str(v) for k, v in options.items()}}
    for name, target in (
        ("labels", lambda row: row.label),
        ("tasks", lambda row: of[row.label]),
    ):
        model = LogisticRegression(C=10.0 if tuned else 1.0, max_iter=200, tol=1e-3)
        model.fit(x, [target(row) for row in train])
        found[name] = accuracy([target(row) for row in test], list(model.predict(x_test)))
    return found


def measure_handwritten(classifier: Classifier) -> dict[str, Any]:
    """Prompts of other wordings, task by task; languages apart."""
    rows = [json.loads(line) for line in HANDWRITTEN.read_text(encoding="utf-8").splitlines()]
    readings = [classifier.read_text(row["prompt"]) for row in rows]
    gold = [row["task"] for row in rows]
    said = [str(reading.task) for reading in readings]
    hit = np.array([g == s for g, s in zip(gold, said, strict=True)])
    confidence = np.array([reading.confidence for reading in readings])
    english = np.array([row["language"] == "en" for row in rows])
    return {
        "prompts": len(rows),
        **accuracy(gold, said),
        "ece": round(expected_calibration_error(confidence, hit), 4),
        "english_accuracy": round(float(hit[english].mean()), 4),
        "other_languages_accuracy": round(float(hit[~english].mean()), 4),
        "language_accuracy": round(
            sum(r["language"] == s.language for r, s in zip(rows, readings, strict=True))
            / len(rows),
            4,
        ),
        "by_task": {task: round(float(hit[[g == task for g in gold]].mean()), 4) for task in TASKS},
    }


def measure_difficulty(classifier: Classifier, file: Path) -> dict[str, Any]:
    """Quality of each backend on the outcomes' test prompts."""
    outcomes = read_outcomes(file)
    found: dict[str, Any] = {}
    for k, name in enumerate(outcomes.backends):
        known = outcomes.test & ~np.isnan(outcomes.scores[:, k])
        prompts = [outcomes.prompts[row] for row in np.flatnonzero(known)]
        said = np.array([classifier.read_text(prompt).quality[name] for prompt in prompts])
        truth = outcomes.scores[known, k]
        area = area_under_curve(said, truth)
        found[name] = {
            "prompts": len(prompts),
            "pass_rate": round(float(truth.mean()), 4),
            "auc": None if area is None else round(area, 4),
            "ece": round(expected_calibration_error(said, truth), 4),
        }
    return found


def measure_time(classifier: Classifier, texts: Sequence[str]) -> list[dict[str, float]]:
    """Milliseconds per text that was not seen before, by length in (estimated) tokens."""
    words = " ".join(texts).split()
    found = []
    for length in LENGTHS:
        samples = []
        size = int(length * CHARS_PER_TOKEN)
        for index in range(REPEATS):
            start = (index * 7919) % (len(words) // 2)
            text = f"{index} " + " ".join(words[start : start + length])
            text = (text * (1 + size // len(text)))[:size]
            begin = time.perf_counter()
            classifier.read_text(text)
            samples.append((time.perf_counter() - begin) * 1e3)
        samples.sort()
        found.append(
            {
                "tokens": length,
                "p50_ms": round(statistics.median(samples), 4),
                "p99_ms": round(samples[int(len(samples) * 0.99)], 4),
            }
        )
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--outcomes", type=Path, help="also measure difficulty on its test prompts")
    parser.add_argument("--head", type=Path, help="another head than the shipped one")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if not (chosen.corpus / "classifier_prompts.jsonl.gz").exists():
        print(f"{chosen.corpus}: no classifier_prompts.jsonl.gz; pass --corpus", file=sys.stderr)
        return 2
    classifier = Classifier.load(chosen.head)
    rows = load_rows(chosen.corpus)
    train = [row for row in rows if row.split == "train"]
    test = [row for row in rows if row.split == "test"]
    # time first: the baseline's fit leaves the caches cold and the machine hot
    times = measure_time(classifier, [row.prompt for row in test])
    figures = describe("classification of chat prompts, one at a time, each text new")
    figures["head"] = {
        key: classifier.card[key]
        for key in (
            "version",
            "data_sha256",
            "rows",
            "practice_rows",
            "prompts",
            "quality_from",
            "quality",
            "reference",
        )
    }
    figures["results"] = {
        "held_out": measure_held_out(classifier, test),
        "baseline_tfidf_logistic_regression": measure_baseline(train, test, tuned=False),
        "baseline_tuned": measure_baseline(train, test, tuned=True),
        "handwritten": measure_handwritten(classifier),
        "latency": times,
    }
    if chosen.outcomes:
        figures["results"]["quality"] = measure_difficulty(classifier, chosen.outcomes)
    write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
