"""Writing a fitted head: the base head's tasks, and qualities of the backends fitted."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.learning.design import DENSE_SCALE
from gateway.learning.network import Network
from gateway.routing.classifier import WORDS, Head
from gateway.routing.forms import BITS
from gateway.routing.together import Group
from gateway.routing.vectorise import Table

Floats = NDArray[np.float32]
LEVELS = 90
"""Of the columns about quality, to either side of 0: fewer bits say as much."""


def write_head(
    base: Head,
    base_folder: Path,
    card: dict[str, Any],
    out: Path,
    *,
    fitted: tuple[Network, Sequence[Group]] | None = None,
    follows: Mapping[str, tuple[float, float]] | None = None,
    beside: Mapping[str, Floats] | None = None,
) -> dict[str, Any]:
    """Write head.npz, words.npz and card.json into `out`; returns the card.

    Tasks, language and the reference of `difficulty` stay the base head's, so difficulty keeps its
    meaning when other backends are fitted; a backend that is fitted anew gets new outputs.

    Args:
        fitted: a network as `Design` scales it, and its groups.
        follows: (slope, offset) of backends over the reference's log-odds.
        beside: arrays of the judges.
    """
    anew = [name for group in (fitted[1] if fitted else ()) for name in group.backends]
    fits, parts = _kept(base, anew)
    if fitted is not None:
        network, groups = fitted
        names = [list(group.backends) for group in groups]
        fits.append({"groups": names, "hidden": len(network.up)})
        parts.append(_of_network(network, base))
    arrays = _arrays(base, parts) | dict(beside or {})
    lines = {name: line for name, line in base.card["follows"].items() if name not in anew}
    lines |= {name: list(line) for name, line in (follows or {}).items()}
    known = [name for fit in fits for group in fit["groups"] for name in group]
    full = {
        **{key: base.card[key] for key in _FROM_BASE if key in base.card},
        "version": version_of(arrays, lines),
        "base": base.card["version"],
        "backends": list(dict.fromkeys([*known, *lines])),
        "fits": fits,
        "follows": lines,
        **card,
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "head.npz", **arrays)
    if (out / WORDS).resolve() != (base_folder / WORDS).resolve():
        shutil.copyfile(base_folder / WORDS, out / WORDS)
    write_json(out / "card.json", full)
    return full


_FROM_BASE = (
    "format", "bits", "counts", "labels", "task_of", "temperature", "reference", "prompts",
    "held_out",
)  # fmt: skip


class _Fit(Struct, frozen=True):
    """The columns of one fit, its logits before its hidden units, and what joins them."""

    rows: Floats
    forms: Floats
    dense: Floats
    bias: Floats
    up: Floats


def _kept(base: Head, anew: Sequence[str]) -> tuple[list[dict[str, Any]], list[_Fit]]:
    """The base's fits that know a backend which is not fitted anew: of the card, and arrays."""
    fits, parts = [], []
    labels, logits = len(base.card["labels"]), base.up.shape[1]
    logit = unit = 0
    for fit in base.card["fits"]:
        patterns = np.arange(logit, logit + sum(1 << len(group) for group in fit["groups"]))
        units = np.arange(unit, unit + fit["hidden"])
        logit, unit = logit + len(patterns), unit + len(units)
        if {name for group in fit["groups"] for name in group} <= set(anew):
            continue
        columns = np.concatenate([patterns, logits + units])
        every = labels + columns
        up = base.up[np.ix_(units, patterns)]
        fits.append(fit)
        parts.append(_Fit(base.rows.whole()[:, every], base.forms.whole()[:, columns],
                          base.dense[:, every], base.bias[every], up))  # fmt: skip
    return fits, parts


def _of_network(network: Network, base: Head) -> _Fit:
    rows = len(base.rows.codes)
    forms = rows + (1 << BITS)
    weights = network.weights
    dense = weights[forms:] * DENSE_SCALE
    return _Fit(weights[:rows], weights[rows:forms], dense, network.bias, network.up)


def _arrays(base: Head, fits: Sequence[_Fit]) -> dict[str, Any]:
    """What stands in the file: the base's labels, all fits' logits, all fits' hidden units."""
    labels = len(base.card["labels"])
    logits = [part.up.shape[1] for part in fits]

    def beside(name: str) -> Floats:
        columns = [getattr(part, name) for part in fits]
        front = [column[..., :at] for column, at in zip(columns, logits, strict=True)]
        back = [column[..., at:] for column, at in zip(columns, logits, strict=True)]
        held = getattr(base, name)
        shape = (held.codes if isinstance(held, Table) else held).shape
        none = np.zeros((*shape[:-1], 0), np.float32)
        return np.concatenate([none, *front, *back], axis=-1, dtype=np.float32)

    tasks, tasks_scale = quantise(base.rows.whole()[:, :labels])
    quality, quality_scale = quantise(beside("rows"), levels=LEVELS)
    forms, forms_scale = quantise(beside("forms"), levels=LEVELS)
    up = np.zeros((sum(len(part.up) for part in fits), sum(logits)), np.float32)
    row = column = 0
    for part in fits:  # no fit reads another's hidden units
        up[row : row + len(part.up), column : column + part.up.shape[1]] = part.up
        row, column = row + len(part.up), column + part.up.shape[1]
    return {
        "rows": np.hstack([tasks, quality]),
        "rows_scale": np.concatenate([tasks_scale, quality_scale]),
        "idf": base.idf.astype(np.float16),
        "forms": forms,
        "forms_scale": forms_scale,
        "dense": np.hstack([base.dense[:, :labels], beside("dense")]),
        "bias": np.concatenate([base.bias[:labels], beside("bias")]),
        "up": up,
        "word_weights": base.words.weights.astype(np.float16),
    }


def write_json(path: Path, value: Any) -> None:
    """One indented document."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def version_of(arrays: dict[str, Any], follows: object = None) -> str:
    """Eight hex digits of what the arrays hold, and of the lines that follow the reference."""
    digest = hashlib.sha256(json.dumps(follows).encode() if follows else b"")
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:8]


def quantise(
    weights: NDArray[np.float32], *, levels: int = 127
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 with one scale per output; fewer levels than 127 to either side pack better."""
    scale = np.maximum(np.abs(weights).max(0), 1e-8) / levels
    return np.round(weights / scale).astype(np.int8), scale.astype(np.float32)
