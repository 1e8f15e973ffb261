"""A head's card: how good it is out of fold, beside chance, length, singles and the oracle."""

from typing import Any

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray

from gateway.learning.confounders import sensitivity
from gateway.learning.curves import (
    BUDGETS,
    Choices,
    Curves,
    Figure,
    Ranking,
    by_merit,
    by_threshold,
    cost_curves,
    ranking,
)
from gateway.learning.outcomes import Outcomes
from gateway.learning.quality import FOLDS, Fitted
from gateway.routing.figures import auc, expected_calibration_error

Floats = NDArray[np.float64]
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def card_of(outcomes: Outcomes, fitted: Fitted, groups: NDArray[np.int64]) -> dict[str, Any]:
    """The contract's figures; intervals are {value, low, high}."""
    named = backends_card(outcomes, fitted)
    known = [entry["auc"] for entry in named.values() if entry["auc"] is not None]
    card: dict[str, Any] = {
        "data_sha256": outcomes.sha256,
        "rows": len(outcomes.prompts),
        "groups": len(np.unique(groups)),
        "folds": FOLDS,
        "test_rows": int((fitted.folds == FOLDS).sum()),
        "costs": "ranks by mean score: the file has none" if outcomes.costs_assumed else "measured",
        "auc": round(float(np.mean(known)), 4) if known else None,
        "ece": max(entry["ece"] for entry in named.values()),
        "quality": named,
        "sensitivity": sensitivity(fitted.quality, fitted.disguised),
    }
    both = complete(outcomes)
    card |= {"apgr": None, "cpt50": None, "cpt80": None, "baselines": {}, "weak": None}
    if len(outcomes.backends) > 1 and both.any():
        card |= _routing(outcomes, fitted, groups, both)
    return card


def backends_card(outcomes: Outcomes, fitted: Fitted) -> dict[str, dict[str, Any]]:
    """AUC, calibration error, pass rate and mean cost of each backend."""
    found = {}
    for index, name in enumerate(outcomes.backends):
        known = ~np.isnan(outcomes.scores[:, index])
        said, truth = fitted.quality[known, index], outcomes.scores[known, index]
        area = auc(said, truth)
        found[name] = {
            "rows": int(known.sum()),
            "pass_rate": round(float(truth.mean()), 4),
            "auc": None if area is None else round(area, 4),
            "ece": round(expected_calibration_error(said, truth), 4),
            "mean_cost": float(np.nanmean(outcomes.costs[:, index])),
        }
    return found


def complete(outcomes: Outcomes) -> NDArray[np.bool_]:
    """[N]: rows on which all backends were asked."""
    return np.asarray(~np.isnan(outcomes.scores).any(axis=1))


def gain_of(fitted: Fitted) -> Floats:
    """[N]: what the dearest backend is predicted to gain over the cheapest."""
    return fitted.quality[:, -1] - fitted.quality[:, 0]


def lengths_of(outcomes: Outcomes) -> Floats:
    """[N]: characters of each prompt."""
    return np.array([len(prompt) for prompt in outcomes.prompts], dtype=np.float64)


def curves_of(
    outcomes: Outcomes, fitted: Fitted, groups: NDArray[np.int64], rows: NDArray[np.bool_]
) -> tuple[Curves, dict[str, Choices]]:
    """Cost–quality curves of the router, the prompt-length router and the oracle."""
    scores, costs = outcomes.scores[rows], outcomes.costs[rows]
    price = costs.mean(0, keepdims=True)
    routers = {
        "router": by_merit(fitted.quality[rows], price, scores, costs),
        "length": by_threshold(lengths_of(outcomes)[rows], scores, costs),
        "oracle": by_merit(scores, costs, scores, costs),
    }
    return cost_curves(routers, scores, costs, groups[rows]), routers


def _routing(
    outcomes: Outcomes, fitted: Fitted, groups: NDArray[np.int64], rows: NDArray[np.bool_]
) -> dict[str, Any]:
    gain = (outcomes.scores[:, -1] - outcomes.scores[:, 0])[rows]
    ranked = {
        "router": ranking(gain_of(fitted)[rows], gain, groups[rows]),
        "weak_failure": ranking(-fitted.quality[rows, 0], gain, groups[rows]),
        "length": ranking(lengths_of(outcomes)[rows], gain, groups[rows]),
        "oracle": ranking(gain, gain, groups[rows]),
    }
    curves, _ = curves_of(outcomes, fitted, groups, rows)
    figures = {name: _figures(found) for name, found in ranked.items()}
    best = int(np.argmax(np.nanmean(outcomes.scores[rows], axis=0)))
    return {
        "weak": outcomes.backends[0],
        "strong": outcomes.backends[-1],
        **figures["router"],
        "area": asdict(Figure.of(curves.area("router"))),
        "apgr_above_length": asdict(
            Figure.of(np.subtract(ranked["router"].apgr, ranked["length"].apgr))
        ),
        "gain_apgr": {name: figures[name]["apgr"] for name in ("router", "weak_failure")},
        "above_control": _above(curves),
        "cost_share_at_95": {
            name: asdict(Figure.of(curves.share_for(name, 0.95)))
            for name in ("router", "single", "length", "oracle")
        },
        "baselines": {
            "shuffled": {
                "apgr": asdict(Figure(0.5, 0.5, 0.5)),
                "cpt50": asdict(Figure(0.5, 0.5, 0.5)),
                "cpt80": asdict(Figure(0.8, 0.8, 0.8)),
                "area": asdict(Figure(0.0, 0.0, 0.0)),
            },
            "length": {
                **figures["length"],
                "area": asdict(Figure.of(curves.area("length"))),
            },
            "single": {
                "best": outcomes.backends[best],
                "quality": round(float(np.nanmean(outcomes.scores[rows], axis=0)[best]), 4),
                "backends": {
                    name: {
                        "quality": round(float(outcomes.scores[rows, index].mean()), 4),
                        "cost": float(outcomes.costs[rows, index].mean()),
                    }
                    for index, name in enumerate(outcomes.backends)
                },
            },
            "oracle": {**figures["oracle"], "area": asdict(Figure(1.0, 1.0, 1.0))},
        },
    }


def _figures(found: Ranking) -> dict[str, Any]:
    return {
        "apgr": asdict(Figure.of(found.apgr)),
        "cpt50": asdict(Figure.of(found.cpt50)),
        "cpt80": asdict(Figure.of(found.cpt80)),
    }


def _above(curves: Curves) -> dict[str, Any]:
    """Quality above the control of equal cost, at shares of the dearest backend's cost."""
    found = {}
    for share in SHARES:
        at = int(np.argmin(np.abs(BUDGETS - share)))
        difference = curves.quality["router"][:, at] - curves.quality["single"][:, at]
        found[f"{share:.1f}"] = asdict(Figure.of(difference))
    return found
