"""The cost–quality curves as points (JSON) and as a picture (PNG, where matplotlib is there)."""

from pathlib import Path
from typing import Any

import numpy as np

from gateway.learning.card import complete, curves_of
from gateway.learning.curves import BUDGETS
from gateway.learning.head_file import write_json
from gateway.learning.outcomes import Outcomes
from gateway.learning.quality import Fitted

LINES = {
    "oracle": "oracle",
    "router": "router",
    "length": "prompt length",
    "single": "best mixture by chance",
}


def write_curves(outcomes: Outcomes, fitted: Fitted, groups: Any, out: Path) -> bool:
    """Write curves.json and curves.png; False if the picture could not be drawn.

    Without rows on which all backends were asked there are no curves; an earlier fit's go.
    """
    rows = complete(outcomes)
    if not rows.any():
        for name in ("curves.json", "curves.png"):
            (out / name).unlink(missing_ok=True)
        return True
    curves, _ = curves_of(outcomes, fitted, groups, rows)
    lines = {}
    for name, quality in curves.quality.items():
        low, high = np.quantile(quality[1:], (0.025, 0.975), axis=0)
        lines[name] = {
            "quality": quality[0].round(5).tolist(),
            "low": low.round(5).tolist(),
            "high": high.round(5).tolist(),
        }
    points = {
        "x": "share of the dearest backend's cost",
        "y": "mean score",
        "budgets": BUDGETS.round(3).tolist(),
        "lines": lines,
        "singles": {
            name: {
                "share": float(outcomes.costs[rows, i].mean() / outcomes.costs[rows, -1].mean()),
                "quality": float(outcomes.scores[rows, i].mean()),
            }
            for i, name in enumerate(outcomes.backends)
        },
    }
    write_json(out / "curves.json", points)
    return _draw(points, out / "curves.png")


def _draw(points: dict[str, Any], path: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), dpi=150)
    budgets = 100 * np.array(points["budgets"])
    for name, words in LINES.items():
        line = points["lines"][name]
        dashes = "--" if name in ("single", "length") else "-"
        axes.plot(budgets, line["quality"], dashes, label=words)
        if name in ("router", "length"):
            axes.fill_between(budgets, line["low"], line["high"], alpha=0.15)
    for name, single in points["singles"].items():
        axes.plot(100 * single["share"], single["quality"], "ko", markersize=4)
        axes.annotate(name, (100 * single["share"], single["quality"]), fontsize=8)
    axes.set_xlabel("share of the dearest backend's cost, %")
    axes.set_ylabel("mean score")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True
