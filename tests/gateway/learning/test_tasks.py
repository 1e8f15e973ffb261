"""Fitting the classifier's tasks, and a whole head from nothing: tasks, then qualities."""

import gzip
import json
from pathlib import Path

import pytest

from backends.evaluation.items import read_items
from gateway.learning import augment, tasks
from gateway.learning.__main__ import main
from gateway.learning.outcomes import read_outcomes
from gateway.routing.classifier import TASKS, Classifier


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the real one's shape: sums, greetings, questions."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(120):
        split = "test" if i % 6 == 0 else "valid" if i % 6 == 1 else "train"
        rows += [
            {"prompt": f"What is {i} plus {i * 7}?", "label": "arithmetic", "split": split},
            {"prompt": f"hello my friend number {i}", "label": "small_talk", "split": split},
            {
                "prompt": f"Who ruled the town of Foo{i} in 15{i}?",
                "label": "trivia",
                "split": split,
            },
        ]
    _gzip(folder / "classifier_prompts.jsonl.gz", rows)
    _gzip(
        folder / "text_encyclopedia.jsonl.gz",
        [{"text": "T\nA town lies by the river. It is old and small."}],
    )
    _gzip(
        folder / "text_stories.jsonl.gz",
        [{"text": "The fox ran over the hill. The crow laughed at him."}],
    )
    return folder


def _gzip(path: Path, rows: list[dict[str, str]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_tasks_then_qualities_make_a_head_that_serves(small_corpus: Path, tmp_path: Path) -> None:
    """From a corpus and outcomes to a folder that Classifier.load reads, and it has learnt both."""
    lines = []
    for i in range(200):
        easy = i % 2 == 0
        prompt = f"What is {i} plus 3?" if easy else f"Who ruled the town of Foo{i} in 15{i}?"
        scores = {"nano": 0.0, "small": float(easy)}
        lines.append(json.dumps({"prompt": prompt, "scores": scores, "suite": "s"}))
    outcomes = tmp_path / "outcomes.jsonl"
    outcomes.write_text("\n".join(lines) + "\n")
    base, head = tmp_path / "tasks", tmp_path / "head"
    card = tasks.train(small_corpus, base, epochs=2, own_per_task=60, say=lambda _: None)
    assert card["held_out"]["tasks_accuracy"] > 0.9
    assert card["backends"] == []
    assert main(["--outcomes", str(outcomes), "--head", str(base), "--out", str(head)]) == 0
    card = json.loads((head / "card.json").read_text())
    assert (card["quality_from"], card["backends"]) == ("outcomes", ["nano", "small"])
    assert card["quality"]["small"]["auc"] > 0.95
    classifier = Classifier.load(head)
    assert classifier.read_text("What is 5 plus 3?").task == "maths"
    easy, hard = (
        classifier.read_text(text) for text in ("What is 5 plus 3?", "Who ruled the town of Bar?")
    )
    assert easy.difficulty < 0.5 < hard.difficulty
    assert max(easy.quality["nano"], hard.quality["nano"]) < 0.2


def test_nothing_is_fitted_on_the_frozen_test_prompts(tmp_path: Path) -> None:
    """Outcomes of `models eval`'s test prompts are for measuring, whatever their line says."""
    items = read_items("tasks")
    marked = {item.prompt: item.split for item in items}
    lines = [{"prompt": p, "scores": {"nano": 1}, "split": "train"} for p in marked]
    lines += [{"prompt": p.upper(), "scores": {"nano": 1}} for p in marked]
    file = tmp_path / "outcomes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_outcomes(file)
    assert found.test.tolist() == [item.split == "test" for item in items] * 2


def test_assumed_failures_are_outcomes_to_practise_on(small_corpus: Path, tmp_path: Path) -> None:
    """One row a prompt, failed by all, of the tasks asked for alone; they are never measured."""
    file = tmp_path / "unable.jsonl.gz"
    arguments = ["--corpus", str(small_corpus), "--backends", "a,b", "--unable", "code,creative"]
    assert augment.main([*arguments, "--out", str(file)]) == 0
    measured = tmp_path / "outcomes.jsonl"
    rows = ({"prompt": f"question {i}", "scores": {"a": 1, "b": 1}} for i in range(20))
    measured.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = read_outcomes(measured, file)
    assert len(outcomes.prompts) == 20 + 2 * augment.ASSUMED_EACH
    assert outcomes.practice.tolist() == [False] * 20 + [True] * 2 * augment.ASSUMED_EACH
    assert not outcomes.scores[outcomes.practice].any()
    assert len(outcomes.only(~outcomes.practice).prompts) == 20
    with pytest.raises(SystemExit):
        augment.main([*arguments[:-1], "poetry", "--out", str(file)])


def test_a_missing_corpus_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the path."""
    assert tasks.main(["--corpus", str(tmp_path)]) == 2
    assert "classifier_prompts.jsonl.gz: no such file" in capsys.readouterr().err


def test_label_map_covers_exactly_the_corpus_labels() -> None:
    """27 labels, each with one of the 8 tasks."""
    of = tasks.load_map()
    corpus = {label: task for label, task in of.items() if not label.startswith("own:")}
    assert len(corpus) == 27
    assert set(corpus.values()) == set(TASKS)
