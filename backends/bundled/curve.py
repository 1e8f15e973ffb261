"""The record of a run beside its weights: `training.json` and `loss.png`."""

from pathlib import Path
from typing import Final

from backends.bundled.checkpoint import Progress
from backends.bundled.tokenizer import write_json

POINTS: Final = 150
"""Points of the curve that are kept; each is a mean over its stretch."""


def thin_curve(curve: list[dict[str, float]], points: int = POINTS) -> list[dict[str, float]]:
    """Average stretches of the curve so that at most about `points` remain."""
    width = max(1, -(-len(curve) // points))
    stretches = [curve[i : i + width] for i in range(0, len(curve), width)]
    return [
        {
            "tokens": stretch[-1]["tokens"],
            "loss": round(sum(point["loss"] for point in stretch) / len(stretch), 4),
            "lr": round(stretch[-1]["lr"], 4),
        }
        for stretch in stretches
    ]


def write_training_record(progress: Progress, folder: Path, *, name: str) -> None:
    """Write what a run did, as JSON and as a picture."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    curve = thin_curve(progress.curve)
    record = {
        "tokens": progress.tokens,
        "steps": progress.step,
        "seed": progress.seed,
        "seconds": round(progress.seconds, 1),
        "curve": curve,
    }
    write_json(folder / "training.json", record)
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([p["tokens"] / 1e6 for p in curve], [p["loss"] for p in curve], linewidth=1.2)
    axes.set_xlabel("tokens, millions")
    axes.set_ylabel("weighted loss, nats")
    axes.set_title(f"{name}: training loss (the last part counts answers only)")
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=90, metadata={"Software": None})
