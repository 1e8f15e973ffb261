"""Writing a fitted head: the base head's tasks, and qualities and gains of the backends fitted."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.learning.design import DENSE_SCALE
from gateway.learning.outcomes import Outcomes
from gateway.learning.quality import Fitted, columns
from gateway.routing.classifier import WORDS, Head
from gateway.routing.fit import quantise

Floats = NDArray[np.float32]


def write_head(
    base: Head,
    base_folder: Path,
    outcomes: Outcomes,
    fitted: Fitted,
    card: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Write head.npz, words.npz and card.json into `out`; returns the card.

    Tasks, language and the reference of `difficulty` stay the base head's, so difficulty keeps its
    meaning when other backends are fitted; a backend that is fitted anew gets new outputs.
    """
    weights, bias, extra = columns(fitted)
    rows = len(base.rows)
    kept = _kept(base, outcomes.backends)
    table, scale = quantise(np.concatenate([base.rows[:, kept], weights[:rows]], axis=1))
    dense = np.concatenate([base.dense[:, kept], weights[rows:] * DENSE_SCALE], axis=1)
    arrays = {
        "rows": table,
        "rows_scale": scale,
        "idf": base.idf.astype(np.float16),
        "dense": dense.astype(np.float32),
        "bias": np.concatenate([base.bias[kept], bias]),
        "word_weights": base.words.weights.astype(np.float16),
    }
    labels = len(base.card["labels"])
    others = [base.card["backends"][index - labels] for index in kept[labels:]]
    full = {
        **{key: base.card[key] for key in _FROM_BASE if key in base.card},
        "version": _version(arrays),
        "base": base.card["version"],
        "backends": [*others, *outcomes.backends],
        "gains": {"over": outcomes.backends[0], "of": outcomes.backends[1:]},
        "quality_from": "outcomes",
        **extra,
        **card,
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "head.npz", **arrays)  # type: ignore[arg-type]
    if (out / WORDS).resolve() != (base_folder / WORDS).resolve():
        shutil.copyfile(base_folder / WORDS, out / WORDS)
    write_json(out / "card.json", full)
    return full


_FROM_BASE = (
    "format", "bits", "trigrams", "chars", "counts", "labels", "task_of", "temperature",
    "reference", "held_out",
)  # fmt: skip


def _kept(base: Head, fitted: list[str]) -> list[int]:
    """Outputs taken over: all labels, and the backends that are not fitted anew."""
    labels = len(base.card["labels"])
    names: list[str] = base.card["backends"]
    return [
        *range(labels),
        *(labels + i for i, name in enumerate(names) if name not in fitted),
    ]


def write_json(path: Path, value: Any) -> None:
    """One indented document."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:8]
