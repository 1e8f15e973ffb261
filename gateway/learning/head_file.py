"""Writing a fitted head: the base head's tasks, and qualities and gains of the backends fitted."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.learning.design import DENSE_SCALE
from gateway.routing.classifier import WORDS, Head

Floats = NDArray[np.float32]


class Outputs(Struct, frozen=True, kw_only=True):
    """What is fitted anew: one column per backend, then one per gain."""

    backends: list[str]
    weights: Floats
    """[R + D, len(backends) + len(gains)], as `Design` scales it."""
    bias: Floats
    over: str | None = None
    """The backend over which the others gain; None: no gains."""


def write_head(
    base: Head, base_folder: Path, outputs: Outputs, card: dict[str, Any], out: Path
) -> dict[str, Any]:
    """Write head.npz, words.npz and card.json into `out`; returns the card.

    Tasks, language and the reference of `difficulty` stay the base head's, so difficulty keeps its
    meaning when other backends are fitted; a backend that is fitted anew gets new outputs.
    """
    labels, count = len(base.card["labels"]), len(outputs.backends)
    others, gains, kept = _kept(base, outputs.backends)
    first = labels + len(others)  # of the kept columns these are gains, which stand last

    def joined(old: Floats, new: Floats) -> Floats:
        """Labels, kept backends, fitted ones; kept gains, fitted ones."""
        old = old[..., kept]
        parts = (old[..., :first], new[..., :count], old[..., first:], new[..., count:])
        return np.concatenate(parts, axis=-1)

    weights, rows = outputs.weights, len(base.rows)
    table, scale = quantise(joined(base.rows, weights[:rows]))
    dense = joined(base.dense, weights[rows:] * DENSE_SCALE)
    arrays: dict[str, Any] = {
        "rows": table,
        "rows_scale": scale,
        "idf": base.idf.astype(np.float16),
        "dense": dense.astype(np.float32),
        "bias": joined(base.bias, outputs.bias).astype(np.float32),
        "word_weights": base.words.weights.astype(np.float16),
    }
    if outputs.over:
        gains = [*gains, {"over": outputs.over, "of": outputs.backends[1:]}]
    full = {
        **{key: base.card[key] for key in _FROM_BASE if key in base.card},
        "version": version_of(arrays),
        "base": base.card["version"],
        "backends": [*others, *outputs.backends],
        "gains": gains,
        **card,
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "head.npz", **arrays)
    if (out / WORDS).resolve() != (base_folder / WORDS).resolve():
        shutil.copyfile(base_folder / WORDS, out / WORDS)
    write_json(out / "card.json", full)
    return full


_FROM_BASE = (
    "format", "bits", "trigrams", "chars", "counts", "labels", "task_of", "temperature",
    "reference", "prompts", "held_out",
)  # fmt: skip


def _kept(base: Head, fitted: list[str]) -> tuple[list[str], list[dict[str, Any]], list[int]]:
    """What is taken over: backends that are not fitted anew, gains between such; the columns."""
    labels = len(base.card["labels"])
    names: list[str] = base.card["backends"]
    columns = [*range(labels), *(labels + i for i, name in enumerate(names) if name not in fitted)]
    gains, at = [], labels + len(names)
    for group in base.card["gains"]:
        of = [name for name in group["of"] if name not in fitted and group["over"] not in fitted]
        columns += [at + i for i, name in enumerate(group["of"]) if name in of]
        gains += [{"over": group["over"], "of": of}] if of else []
        at += len(group["of"])
    return [name for name in names if name not in fitted], gains, columns


def write_json(path: Path, value: Any) -> None:
    """One indented document."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def version_of(arrays: dict[str, Any]) -> str:
    """Eight hex digits of what the arrays hold."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:8]


def quantise(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 with one scale per output."""
    scale = np.maximum(np.abs(weights).max(0), 1e-8) / 127
    return np.round(weights / scale).astype(np.int8), scale.astype(np.float32)
