"""The second head: fitted over the first one's folds, written beside it, honest about its use."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.embed import embed
from gateway.errors import SettingsError
from gateway.learning.network import Network
from gateway.learning.outcomes import Outcomes, read_outcomes
from gateway.learning.quality import FOLDS, Calibration, Fitted, grouped
from gateway.learning.second_stage import (
    GATE,
    EncoderError,
    EncoderProcess,
    SecondStage,
    helps,
)
from gateway.routing.second_head import SECOND, SecondHead
from tests.gateway.learning import made_up

DIMENSIONS = 8
Made = tuple[Outcomes, Fitted, Any]


class Meanings:
    """Vectors that know what the n-grams cannot, or nothing at all."""

    name = "bundled:minilm"

    def __init__(self, hard: dict[str, bool]) -> None:
        self._hard = hard

    def __call__(self, texts: Sequence[str]) -> Any:
        found = np.zeros((len(texts), DIMENSIONS))
        for row, text in enumerate(texts):
            seed = hashlib.blake2b(text.encode(), digest_size=4).digest()
            found[row] = np.random.default_rng(list(seed)).normal(size=DIMENSIONS)
            known = next((hard for key, hard in self._hard.items() if key in text), None)
            if known is not None:
                found[row, 0] = 4.0 if known else -4.0
        return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Outcomes, and a first head that can only guess."""
    lines = made_up.rows(160)
    for index, line in enumerate(lines):
        hard = index % 2 == 0
        line["prompt"] = hashlib.sha256(str(index).encode()).hexdigest()[:12]
        line["scores"] = {"cheap-one": float(not hard), "dear-one": 1.0}
    outcomes = read_outcomes(made_up.write(tmp_path_factory.mktemp("o") / "o.jsonl", lines))
    rows = len(outcomes.prompts)
    quality = np.random.default_rng(7).uniform(0.4, 0.6, (rows, 2))
    fitted = Fitted(
        network=Network(*(np.zeros(shape, np.float32) for shape in ((1, 5), 5, (1, 4)))),
        calibration=Calibration(np.ones(1), np.zeros(4), np.zeros(4), grouped(outcomes.backends)),
        quality=quality,
        folds=np.arange(rows) % (FOLDS + 1),
        disguised=dict.fromkeys(GATE, quality),
    )
    return outcomes, fitted, np.arange(rows)


def test_vectors_that_know_more_help_and_the_card_says_so(made: Made, tmp_path: Path) -> None:
    """The gain's lower bound is above 0; what is served is what was measured."""
    outcomes, fitted, groups = made
    meanings = Meanings(dict(zip(outcomes.prompts, outcomes.scores[:, 0] < 0.5, strict=True)))
    stage = SecondStage.fit(outcomes, fitted, groups, meanings)
    assert stage.card["helps"] is True
    assert stage.card["area"]["gain"]["low"] > 0.2
    auc = {name: by["cheap-one"]["auc"] for name, by in stage.card["quality"].items()}
    assert auc["second"] > 0.95 > 0.65 > auc["first"]
    summary = stage.summary
    assert summary["apgr"]["second"]["low"] > summary["apgr"]["first"]["value"]
    assert summary["cpt50"]["second"]["high"] < summary["cpt50"]["first"]["value"]
    assert summary["apgr_above_length"]["second"]["low"] > 0
    stage.write("v1", tmp_path)
    head = SecondHead.load(tmp_path, "v1")
    assert head is not None
    vectors = meanings(outcomes.prompts)
    for row in range(20):
        first = dict(zip(outcomes.backends, fitted.quality[row].tolist(), strict=True))
        said = head.quality(first | {"other": 0.3}, vectors[row].astype(np.float32))
        assert said["other"] == 0.3
        assert (said["cheap-one"] > 0.5) == (outcomes.scores[row, 0] > 0.5)
        assert said["cheap-one"] == pytest.approx(stage.second.quality[row, 0], abs=0.15)
    with pytest.raises(ValueError, match="mismatch"):
        head.quality(first, np.zeros(DIMENSIONS + 1, np.float32))


def test_vectors_that_know_nothing_do_not_help(made: Made) -> None:
    """Noise gains nothing, and the card does not claim it does."""
    outcomes, fitted, groups = made
    stage = SecondStage.fit(outcomes, fitted, groups, Meanings({}))
    assert stage.card["helps"] is False
    assert stage.summary["area"]["gain"]["low"] <= 0


@pytest.mark.parametrize(("above", "is_so"), [(0.94, False), (0.96, True)])
def test_look_helps_where_95_of_100_draws_gain(above: float, is_so: bool) -> None:
    """The question has one side: is it better? Draws that are not defined do not count."""
    draws = np.where(np.arange(1000) < 1000 * above, 0.1, -0.1)
    assert helps(np.concatenate([[0.1], draws, [np.nan]])) is is_so
    assert not helps(np.array([0.1, np.nan]))


def test_second_head_of_another_first_one_is_left_alone(made: Made, tmp_path: Path) -> None:
    """None for another version or no file; a broken file is named."""
    outcomes, fitted, groups = made
    assert SecondHead.load(tmp_path, "v1") is None
    SecondStage.fit(outcomes, fitted, groups, Meanings({})).write("v1", tmp_path)
    assert SecondHead.load(tmp_path, "v2") is None
    (tmp_path / SECOND).write_bytes(b"nonsense")
    with pytest.raises(SettingsError, match=SECOND):
        SecondHead.load(tmp_path, "v1")


def test_encoder_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    """The child's words reach the user."""
    with pytest.raises(EncoderError, match="is no folder"):
        EncoderProcess(str(tmp_path / "nowhere"))(["a"])


def test_embed_puts_vectors_back_in_order() -> None:
    """Texts are encoded by length and come back as they were given; empty ones, too."""

    class Lengths:
        dimensions = 1

        def __init__(self) -> None:
            self.seen: list[int] = []

        def encode(self, texts: Sequence[str]) -> Any:
            self.seen += map(len, texts)
            return np.array([[len(text)] for text in texts], dtype=np.float32)

    encoder: Any = Lengths()
    texts = ["ccc", "a", "", "bb"] * 40
    assert embed(encoder, texts)[:4, 0].tolist() == [3, 1, 1, 2]
    assert encoder.seen == sorted(encoder.seen)
