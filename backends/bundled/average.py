"""Average models of one shape: `python -m backends.bundled.average SOURCE… --out CHECKPOINT`.

Runs that went on from the same weights, each over data of its own until its learning rate was
zero, lie in one basin: their mean is better than any of them.

Source: Wortsman et al. 2022, "Model soups".
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from backends.bundled.checkpoint import Progress, save_checkpoint
from backends.bundled.errors import CheckpointError, RecipeError
from backends.bundled.load import read_source
from backends.bundled.model import Llama


def average(sources: Sequence[Path]) -> tuple[Llama, Progress]:
    """Return the mean of models, and what the runs among them did, one after the other.

    Args:
        sources: Checkpoints, or exported folders, of which nothing is known but the weights.

    Raises:
        RecipeError: one cannot be read, or is of another shape than the first.
    """
    mean, _ = read_source(sources[0])
    total = {name: torch.zeros_like(weight) for name, weight in mean.state_dict().items()}
    done = Progress(seed=0)
    for source in sources:
        model, progress = read_source(source)
        if model.spec.shape != mean.spec.shape:
            raise CheckpointError(
                f"{str(source)!r} has another shape than {str(sources[0])!r}; "
                "only models of one shape have a mean"
            )
        for name, weight in model.state_dict().items():
            total[name] += weight / len(sources)
        if progress is not None:
            done = _after(done, progress)
    mean.load_state_dict(total)
    return mean, done


def _after(first: Progress, then: Progress) -> Progress:
    later = [point | {"tokens": point["tokens"] + first.tokens} for point in then.curve]
    return Progress(
        seed=then.seed,
        step=first.step + then.step,
        tokens=first.tokens + then.tokens,
        seconds=first.seconds + then.seconds,
        curve=first.curve + later,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m backends.bundled.average", description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+", help="checkpoints or model folders")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    args = parser.parse_args(argv)
    try:
        model, progress = average(args.sources)
        save_checkpoint(args.out, model.spec, model, [], progress)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
