"""`--plot FILE.png`: a report as a picture. matplotlib is imported here only; not a command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.cli.common import fail

MOST_BARS = 40
"""More cannot be read; the rest are added up or left out by the caller."""
_COLOURS = ("#1d62d6", "#d97a06", "#11876b", "#a23bb0", "#c5303a", "#6b7885", "#8f7a1b")
_ACROSS = 12
"""From so many bars on they stand upright, their names aslant."""


def check_plot(plot: str | None) -> None:
    """Exit before any work where the picture could not be made or be put there."""
    if plot is None:
        return
    file = Path(plot)
    if file.suffix.lower() != ".png":
        fail(f"--plot {plot!r}; give a file that ends in .png", code=2)
    if not file.absolute().parent.is_dir():
        fail(f"--plot {plot!r}: there is no folder {str(file.absolute().parent)!r}", code=2)
    try:
        import matplotlib
    except ImportError:
        fail("--plot needs matplotlib: pip install 'headgate[plot]'")
    matplotlib.use("Agg")


def draw_bars(
    plot: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    unit: str,
    stacked: bool = True,
) -> None:
    """One bar per name, of as many parts as there are series; beside each other unless stacked."""
    from matplotlib import pyplot

    upright = len(names) >= _ACROSS
    size = (max(7.0, 0.32 * len(names) + 2), 4.5) if upright else (8.0, 0.45 * len(names) + 1.6)
    figure, axes = pyplot.subplots(figsize=size, dpi=150)
    place = range(len(names))
    thick = 0.8 if stacked else 0.8 / max(len(series), 1)
    above, below = [0.0] * len(names), [0.0] * len(names)
    for number, (name, values) in enumerate(series.items()):
        shift = 0.0 if stacked else (number - (len(series) - 1) / 2) * thick
        at = [one + shift for one in place]
        starts = [a if v >= 0 else b for a, b, v in zip(above, below, values, strict=True)]
        begins: Any = starts if stacked else 0
        colour = _COLOURS[number % len(_COLOURS)]
        if upright:
            axes.bar(at, values, thick, bottom=begins, color=colour, label=name)
        else:
            axes.barh(at, values, thick, left=begins, color=colour, label=name)
        above = [a + max(v, 0.0) for a, v in zip(above, values, strict=True)]
        below = [b + min(v, 0.0) for b, v in zip(below, values, strict=True)]
    shown = [_short(name) for name in names]
    if upright:
        axes.set_xticks(list(place), shown, rotation=60, ha="right", fontsize=7)
        axes.set_ylabel(unit)
    else:
        axes.set_yticks(list(place), shown)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(alpha=0.3, axis="y" if upright else "x")
    axes.set_axisbelow(True)
    above_right = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(series)}
    axes.legend(fontsize=8, frameon=False, borderaxespad=0.2, **above_right)
    figure.tight_layout()
    figure.savefig(plot)
    pyplot.close(figure)


def _short(name: str) -> str:
    """What fits beside a bar; a dollar sign would begin a formula."""
    text = name if len(name) <= 32 else f"{name[:31]}…"
    return text.replace("$", r"\$")
