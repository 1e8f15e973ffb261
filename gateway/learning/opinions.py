"""Qualities out of the ledger's feedback: no text is stored, difficulty stands in for prompts.

P(a backend answers well) is a sigmoid of the logit of P(the head's reference answers well), which
every row has, with a slope and an offset fitted per backend. The new head holds both beside what
the old one reads of prompts.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.learning.head_file import write_head
from gateway.learning.outcomes import OutcomesError
from gateway.learning.quality import FOLDS
from gateway.learning.ridges import sigmoid_fit
from gateway.routing.classifier import Head
from gateway.routing.figures import auc, expected_calibration_error

Floats = NDArray[np.float64]
MIN_OPINIONS = 30
"""Of one backend; with fewer it keeps what it had."""
EDGE = 1e-4
STEEPEST = 4.0
"""Times the slope that a line of unit steepness would have: feedback is coarse."""


class Opinion(Struct, frozen=True, kw_only=True):
    """One line: the mean score of a request, and what was predicted of its prompt."""

    request_id: str
    backend: str
    difficulty: float
    score: float
    head: str = ""


class Opinions(Struct, frozen=True, kw_only=True):
    """All lines, by backend."""

    by_backend: dict[str, list[Opinion]]
    sha256: str
    too_few: dict[str, int] = {}
    """How many there are of backends that keep what they had."""


def read_opinions(path: Path) -> Opinions:
    """Read a file of opinions. Raises OutcomesError."""
    try:
        data = path.read_bytes()
        lines = [msgspec.json.decode(line, type=Opinion) for line in data.splitlines()]
    except (OSError, msgspec.MsgspecError) as error:
        raise OutcomesError(f"{path}: {error}") from None
    found: dict[str, list[Opinion]] = {}
    for line in lines:
        found.setdefault(line.backend, []).append(line)
    enough = {name: rows for name, rows in sorted(found.items()) if len(rows) >= MIN_OPINIONS}
    if not enough:
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in sorted(found.items())) or "none"
        raise OutcomesError(
            f"{MIN_OPINIONS} opinions of one backend are needed; there are {counts}"
        )
    return Opinions(
        by_backend=enough,
        sha256=hashlib.sha256(data).hexdigest(),
        too_few={name: len(rows) for name, rows in sorted(found.items()) if name not in enough},
    )


def fit_opinions(opinions: Opinions, base_folder: Path, out: Path) -> dict[str, Any]:
    """Fit, measure and write; returns the card. Raises SettingsError for the base."""
    base = Head.load(base_folder)
    # rows hold what this head says of the reference, which may already follow an earlier fit
    before = base.card["follows"].get(base.card["reference"], (1.0, 0.0))
    follows, quality = {}, {}
    predictions: list[dict[str, Any]] = []
    for name, rows in opinions.by_backend.items():
        x = _logits(np.array([row.difficulty for row in rows]))
        truth = np.array([row.score for row in rows])
        slope, offset = sigmoid_fit(x, truth, steepest=STEEPEST)
        follows[name] = (slope * before[0], slope * before[1] + offset)
        said, folds = _out_of_fold(x, truth)
        quality[name] = _figures(said, truth)
        predictions += [
            {"row": len(predictions) + i, "fold": int(fold), "p": {name: round(float(p), 6)},
             "gain": None} for i, (p, fold) in enumerate(zip(said, folds, strict=True))
        ]  # fmt: skip
    known = [entry["auc"] for entry in quality.values() if entry["auc"] is not None]
    card: dict[str, Any] = {
        "data_sha256": opinions.sha256,
        "rows": len(predictions),
        "folds": FOLDS,
        "quality_from": "feedback",
        "auc": round(float(np.mean(known)), 4) if known else None,
        "ece": max(entry["ece"] for entry in quality.values()),
        "quality": quality,
        "too_few": opinions.too_few,
        "least": MIN_OPINIONS,
        # no prompt was answered by two backends, so nothing says what a choice would have gained
        "apgr": None,
        "cpt50": None,
        "cpt80": None,
        "baselines": {},
    }
    card = write_head(base, base_folder, card, out, follows=follows)
    text = "".join(msgspec.json.encode(line).decode() + "\n" for line in predictions)
    (out / "predictions.jsonl").write_text(text, encoding="utf-8")
    return card


def _logits(difficulty: Floats) -> Floats:
    good = np.clip(1 - difficulty, EDGE, 1 - EDGE)
    return np.asarray(np.log(good / (1 - good)))


def _out_of_fold(x: Floats, truth: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Each row's probability by a fit without its fold; every score is in every fold alike."""
    folds = np.empty(len(x), dtype=np.int64)
    folds[np.argsort(truth, kind="stable")] = np.arange(len(x)) % FOLDS
    said = np.empty(len(x))
    for fold in range(FOLDS):
        inside = folds == fold
        slope, offset = sigmoid_fit(x[~inside], truth[~inside], steepest=STEEPEST)
        said[inside] = 1 / (1 + np.exp(-(slope * x[inside] + offset)))
    return said, folds


def _figures(said: Floats, truth: Floats) -> dict[str, Any]:
    area = auc(said, truth)
    return {
        "rows": len(truth),
        "pass_rate": round(float(truth.mean()), 4),
        "auc": None if area is None else round(area, 4),
        "ece": round(expected_calibration_error(said, truth), 4),
    }
