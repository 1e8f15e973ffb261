"""`policy fit --feedback`: qualities of backends from what callers said."""

import json
from pathlib import Path

import numpy as np
import pytest

from gateway.learning.__main__ import main
from gateway.routing.classifier import Classifier
from tests.gateway.cli.conftest import Headgate, headgate

__all__ = ["headgate"]


def opinions(path: Path, count: int = 600) -> Path:
    """A backend that is liked for easy prompts, and hardly for hard ones."""
    rng = np.random.default_rng(4)
    lines = []
    for index in range(count):
        difficulty = float(rng.random())
        score = float(rng.random() < 0.95 - 0.8 * difficulty)
        lines.append({"request_id": str(index), "backend": "ours", "difficulty": difficulty,
                      "score": score})  # fmt: skip
    lines += [{**lines[0], "backend": "rare"}] * 5
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_qualities_follow_feedback_and_difficulty_stays(tmp_path: Path) -> None:
    """A calibrated head over the same features; a backend with five opinions gets none."""
    file = opinions(tmp_path / "o.jsonl")
    assert main(["--opinions", str(file), "--out", str(tmp_path / "head")]) == 0
    card = json.loads((tmp_path / "head" / "card.json").read_text())
    assert (card["rows"], card["quality_from"], card["apgr"]) == (600, "feedback", None)
    assert sorted(card["backends"]) == ["base", "nano", "ours", "small"]
    assert (card["too_few"], card["least"]) == ({"rare": 5}, 30)
    assert card["auc"] > 0.65
    assert card["ece"] < 0.06
    ours, base = Classifier.load(tmp_path / "head"), Classifier.load()
    for text in ("What is 7 + 2?", "Write a long story about the sea.", "Is 3 less than 8?"):
        found, before = ours.read_text(text), base.read_text(text)
        assert found.difficulty == pytest.approx(before.difficulty, abs=0.02)
        wanted = 0.95 - 0.8 * before.difficulty
        assert found.quality["ours"] == pytest.approx(wanted, abs=0.12)


def test_without_enough_feedback_the_command_says_how_much_there_is(headgate: Headgate) -> None:
    """Exit 2; a file and feedback at once is bad usage, too."""
    done = headgate.run("policy", "fit", "--feedback", "--out", "head")
    assert done.exit_code == 2
    both = headgate.run("policy", "fit", "--feedback", "--outcomes", "x", "--out", "head")
    assert both.exit_code == 2
    assert "exactly one of" in both.stderr
