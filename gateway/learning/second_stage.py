"""Fitting the second head: what a text's meaning adds to what the first head says of it.

The first head's log-odds (out of fold) stand beside the encoder's vector under one ridge an output;
the folds are the first head's. Rows count again in a disguise, as there. What is measured is what
is served: half way between both heads. The card says whether it helps: area, APGR, CPT50 and AUC of
both on the same rows, and the difference with its interval by the same draws.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import asdict
from numpy.typing import NDArray

from gateway.learning.card import complete, lengths_of
from gateway.learning.confounders import disguised, dressed, sensitivity
from gateway.learning.curves import Figure, by_merit, cost_curves, ranking
from gateway.learning.head_file import write_json
from gateway.learning.judges import logits
from gateway.learning.outcomes import MIN_ROWS, Outcomes
from gateway.learning.quality import FOLDS, Fitted
from gateway.learning.ridges import (
    Calibration,
    Linear,
    calibrate,
    calibrated,
    ridge,
    strengths,
    targets_of,
)
from gateway.routing.figures import auc, expected_calibration_error
from gateway.routing.second_head import FORMAT, MAX_CHARS, SECOND, SECOND_CARD, VECTOR_SCALE

Floats = NDArray[np.float64]
ENCODER = "bundled:minilm"
GATE = ("hard_prefix", "suffix")
"""Disguises that the gate looks through; each takes the encoder another pass."""
ONE_SIDED = 0.05
"""Of the draws, that may show no gain."""


class EncoderError(ValueError):
    """No vectors: the encoder is not installed, or it failed."""


class FewRowsError(ValueError):
    """Too few prompts that both the cheapest backend and another one answered."""


class Embedder(Protocol):
    """Texts to unit vectors."""

    name: str
    """Of the encoder, as `[cache.semantic] encoder` has it."""

    def __call__(self, texts: Sequence[str]) -> Floats:
        """[N, D]. Raises EncoderError."""
        ...


class EncoderProcess:
    """An encoder in a child process: torch never enters this one."""

    def __init__(self, model: str = ENCODER) -> None:
        self.name = model

    def __call__(self, texts: Sequence[str]) -> Floats:
        """[N, D]. Raises EncoderError."""
        shown = [text.strip()[:MAX_CHARS] for text in texts]
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "vectors.npy")
            done = subprocess.run(
                [sys.executable, "-P", "-m", "backends.embed", "--model", self.name, "--out", file],
                input=json.dumps(shown).encode(),
                capture_output=True,
                check=False,
            )
            if done.returncode != 0:
                why = done.stderr.decode(errors="replace").strip().splitlines() or ["it died"]
                raise EncoderError(f"encoder {self.name!r}: {why[-1]}")
            return np.asarray(np.load(file), dtype=np.float64)


class Second(Struct, frozen=True):
    """A second head's outputs with how they did out of fold."""

    linear: Linear
    calibration: Calibration
    quality: Floats
    """[N, K], the second opinion on each row, by heads that have not seen its group."""
    disguised: dict[str, Floats]


class SecondStage(Struct, frozen=True):
    """A second head that is ready to be written."""

    outcomes: Outcomes
    second: Second
    encoder: str
    card: dict[str, Any]

    @classmethod
    def fit(
        cls, outcomes: Outcomes, fitted: Fitted, groups: NDArray[np.int64], embedder: Embedder
    ) -> "SecondStage":
        """Fit and measure. Raises EncoderError, FewRowsError."""
        second = fit_second(outcomes, fitted, groups, embedder)
        card = second_card(outcomes, fitted, second, groups)
        return cls(outcomes, second, embedder.name, card)

    @property
    def summary(self) -> dict[str, Any]:
        """For the first head's card."""
        names = ("area", "apgr", "cpt50", "cpt80", "apgr_above_length", "helps")
        return {"encoder": self.encoder, **{name: self.card[name] for name in names}}

    def write(self, head: str, out: Path) -> dict[str, Any]:
        """Write second.npz and second.json beside the head of that version; returns the card."""
        backends = self.outcomes.backends
        slope, offset = self.second.calibration.slope, self.second.calibration.offset
        weights = self.second.linear.weights * slope.astype(np.float32)
        bias = (self.second.linear.bias * slope + offset).astype(np.float32)
        full = {
            "format": FORMAT,
            "head": head,
            "encoder": self.encoder,
            "dimensions": len(weights) - len(backends),
            "backends": backends,
            "data_sha256": self.outcomes.sha256,
            **self.card,
        }
        out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out / SECOND, weights=weights, bias=bias)
        write_json(out / SECOND_CARD, full)
        return full


def remove_second(out: Path) -> None:
    """A second head that was fitted over another first one is of no use."""
    for name in (SECOND, SECOND_CARD):
        (out / name).unlink(missing_ok=True)


def fit_second(
    outcomes: Outcomes, fitted: Fitted, groups: NDArray[np.int64], embed: Embedder
) -> Second:
    """Cross-validate on the first head's folds, calibrate, and fit on all but frozen rows."""
    targets, folds = targets_of(outcomes), fitted.folds
    told = int((~np.isnan(targets[folds != FOLDS])).sum(axis=0).min())
    if told < MIN_ROWS:
        raise FewRowsError(
            f"{told} prompts were answered by the cheapest backend and by a dearer one; at least "
            f"{MIN_ROWS}"
        )
    rows, backends = len(folds), len(outcomes.backends)
    hidden = dressed(outcomes.prompts, seed=0)
    kinds = disguised(outcomes.prompts, gate=True)
    gate = {kind: kinds[kind] for kind in GATE}
    vectors = embed([*outcomes.prompts, *hidden, *chain.from_iterable(gate.values())])
    x = _beside(fitted.quality, vectors[:rows])
    veiled = _beside(fitted.quality, vectors[rows : 2 * rows])
    seen = {
        kind: _beside(fitted.disguised[kind], vectors[(2 + place) * rows : (3 + place) * rows])
        for place, kind in enumerate(gate)
    }
    raw = np.full(targets.shape, np.nan)
    raw_gate = {kind: raw.copy() for kind in gate}
    linear: Linear | None = None
    for fold in [*range(FOLDS), FOLDS]:
        inside, outside = folds == fold, (folds != fold) & (folds != FOLDS)
        if fold != FOLDS and not inside.any():
            continue
        alphas = strengths(_sparse(x[outside]), targets[outside], groups[outside])
        both = np.concatenate([x[outside], veiled[outside]])
        linear = ridge(_sparse(both), np.tile(targets[outside], (2, 1)), alphas * 2)
        raw[inside] = linear(_sparse(x[inside]))
        for kind, part in seen.items():
            raw_gate[kind][inside] = linear(_sparse(part[inside]))
    assert linear is not None  # the last one: fitted on all rows that are not frozen
    train = folds != FOLDS
    calibration = calibrate(raw[train], targets[train], backends)
    return Second(
        linear=linear,
        calibration=calibration,
        quality=_between(fitted.quality, calibrated(raw, targets, folds, train, backends)[0]),
        disguised={
            kind: _between(fitted.disguised[kind], calibration(part)[0])
            for kind, part in raw_gate.items()
        },
    )


def _between(first: Floats, second: Floats) -> Floats:
    """Half way in log-odds, as a second head serves it."""
    return np.asarray(1 / (1 + np.exp(-(logits(first) + logits(second)) / 2)))


def _beside(quality: Floats, vectors: Floats) -> Floats:
    """[N, K + D]: log-odds, then the vector."""
    return np.hstack([logits(quality), VECTOR_SCALE * vectors])


def _sparse(x: Floats) -> Any:
    import scipy.sparse as sp  # type: ignore[import-untyped]

    return sp.csr_matrix(x.astype(np.float32))


def second_card(
    outcomes: Outcomes, fitted: Fitted, second: Second, groups: NDArray[np.int64]
) -> dict[str, Any]:
    """Figures of both heads on the same rows; intervals are {value, low, high}."""
    both = {"first": fitted.quality, "second": second.quality}
    by_head = {
        name: {
            backend: _figures(quality[:, k], outcomes.scores[:, k])
            for k, backend in enumerate(outcomes.backends)
        }
        for name, quality in both.items()
    }
    moves = np.sqrt(np.nanmean((second.quality - fitted.quality) ** 2, axis=0))
    card: dict[str, Any] = {
        "rows": len(outcomes.prompts),
        "quality": by_head,
        "shift": dict(zip(outcomes.backends, moves.round(4).tolist(), strict=True)),
        "sensitivity": sensitivity(second.quality, second.disguised),
        **dict.fromkeys(("area", "apgr", "cpt50", "cpt80", "apgr_above_length", "helps")),
    }
    rows = complete(outcomes)
    if len(outcomes.backends) < 2 or not rows.any():
        return card
    scores, costs = outcomes.scores[rows], outcomes.costs[rows]
    price = costs.mean(0, keepdims=True)
    routers = {name: by_merit(q[rows], price, scores, costs) for name, q in both.items()}
    routers["oracle"] = by_merit(scores, costs, scores, costs)
    curves = cost_curves(routers, scores, costs, groups[rows])
    first, after = curves.area("first"), curves.area("second")
    gain = Figure.of(after - first)
    area = {"first": Figure.of(first), "second": Figure.of(after), "gain": gain}
    dearer = scores[:, -1] - scores[:, 0]
    ranked = {
        name: ranking((q[:, -1] - q[:, 0])[rows], dearer, groups[rows]) for name, q in both.items()
    }
    length = ranking(lengths_of(outcomes)[rows], dearer, groups[rows])
    above = {name: found.apgr - length.apgr for name, found in ranked.items()}
    return card | {
        "area": {name: asdict(figure) for name, figure in area.items()},
        **{
            figure: {
                name: asdict(Figure.of(getattr(found, figure))) for name, found in ranked.items()
            }
            for figure in ("apgr", "cpt50", "cpt80")
        },
        "apgr_above_length": {name: asdict(Figure.of(draws)) for name, draws in above.items()},
        "helps": helps(after - first),
    }


def helps(gained: Floats) -> bool:
    """Whether a gain, an estimate and then its draws, is above 0 in 95 of 100 draws: one-sided, as
    nobody asks whether a look does harm."""
    draws = gained[1:][np.isfinite(gained[1:])]
    return bool(len(draws)) and bool(np.quantile(draws, ONE_SIDED) > 0)


def _figures(said: Floats, truth: Floats) -> dict[str, float | None]:
    known = ~np.isnan(truth)
    area = auc(said[known], truth[known])
    error = expected_calibration_error(said[known], truth[known])
    return {"auc": None if area is None else round(area, 4), "ece": round(error, 4)}
