"""Checkpoints: the whole state of a run in one file, replaced at once or not at all."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.optim import Optimizer

from backends.bundled.config import ModelSpec
from backends.bundled.errors import CheckpointError


class Progress(msgspec.Struct, kw_only=True):
    """Where a run stands; batches follow from seed and step, so this is the data position too."""

    seed: int
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = []
    """Points of the loss curve: tokens, loss, lr."""


def save_checkpoint(
    path: Path, spec: ModelSpec, model: nn.Module, optimizers: list[Optimizer], progress: Progress
) -> None:
    """Write model, optimizers, progress and the random state next to `path`, then swap it in."""
    state = {
        "spec": msgspec.to_builtins(spec),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": msgspec.to_builtins(progress),
        "rng": torch.get_rng_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    torch.save(state, fresh)
    fresh.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {str(path)!r}; train without --resume first")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read ({error}); delete it and train again"
        ) from error
    return state


def restore(
    path: Path, spec: ModelSpec, model: nn.Module, optimizers: list[Optimizer], seed: int
) -> Progress:
    """Load a checkpoint into a run of the same spec and seed, and say where it stands.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another spec or seed.
    """
    state = read_checkpoint(path)
    if msgspec.convert(state["spec"], ModelSpec) != spec:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is of model {state['spec']['name']!r} in another shape "
            f"than {spec.name!r}; name another --out, or train without --resume"
        )
    if not state["optimizers"]:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is a mean of several, which has no optimizer to resume; "
            "begin another run with --start-from"
        )
    progress = msgspec.convert(state["progress"], Progress)
    if progress.seed != seed:
        raise CheckpointError(
            f"checkpoint {str(path)!r} was trained with seed {progress.seed}, not {seed}; "
            f"resume with --seed {progress.seed}"
        )
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"])
    return progress
