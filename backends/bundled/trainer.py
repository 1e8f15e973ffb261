"""The training loop: one step at a time, resumable at any of them."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from backends.bundled.batches import Batcher, Rows
from backends.bundled.checkpoint import Progress, read_checkpoint, restore, save_checkpoint
from backends.bundled.config import ModelSpec, TrainPlan
from backends.bundled.errors import CheckpointError, ExportError
from backends.bundled.grow import grow
from backends.bundled.load import load_model, read_source
from backends.bundled.model import Llama, init_weights, weighted_loss
from backends.bundled.optim import lr_factor, make_optimizers, peak_rates

Loss = Callable[..., Tensor]
CURVE_EVERY = 10
"""Steps between two points of the loss curve."""


class Trainer:
    """One run: model, optimizers and progress, driven over the batches of a plan."""

    def __init__(
        self,
        spec: ModelSpec,
        plan: TrainPlan,
        batcher: Batcher,
        *,
        seed: int,
        device: str = "cpu",
        compiled: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        torch.manual_seed(seed)
        self.spec, self.plan, self.batcher, self.clock = spec, plan, batcher, clock
        self.device = torch.device(device)
        self.model = Llama(spec)
        init_weights(self.model, seed)
        self.model.to(self.device)
        self.optimizers = make_optimizers(self.model, plan)
        self.progress = Progress(seed=seed)
        self.teacher: Llama | None = None
        self.loss: Loss = torch.compile(weighted_loss, dynamic=False) if compiled else weighted_loss

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same spec and seed."""
        self.progress = restore(path, self.spec, self.model, self.optimizers, self.progress.seed)

    def grow_from(self, path: Path) -> None:
        """Begin with what the checkpoint of a smaller model has learned; see `grow`."""
        state = read_checkpoint(path)
        old = msgspec.convert(state["spec"], ModelSpec)
        grown = grow(state["model"], old, self.spec, seed=self.progress.seed)
        self.model.load_state_dict(grown.state_dict())

    def start_from(self, source: Path) -> None:
        """Begin with the weights of a checkpoint or of a model folder, and nothing else of it.

        Raises:
            RecipeError: the source cannot be read, or is of another shape.
        """
        model, _ = read_source(source)
        if model.spec.shape != self.spec.shape:
            raise CheckpointError(
                f"{str(source)!r} has another shape than {self.spec.name!r}; "
                "only a model of the same shape can be gone on with"
            )
        self.model.load_state_dict(model.state_dict())

    def learn_from(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Take the model of a folder as a teacher.

        Raises:
            ExportError: the folder holds no model that writes the same tokens.
        """
        teacher, theirs = load_model(folder)
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise ExportError(
                f"teacher {str(folder)!r} has another tokenizer than this run; "
                f"train with --tokenizer {str(folder / 'tokenizer.json')!r}"
            )
        self.teacher = teacher.to(self.device).requires_grad_(requires_grad=False)

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        save_checkpoint(path, self.spec, self.model, self.optimizers, self.progress)

    def step(self) -> float:
        """Train on one batch and return its weighted mean loss."""
        started, progress = self.clock(), self.progress
        groups = self.batcher.batch(progress.step)
        total = float(sum(rows.weights.sum() for rows in groups)) or 1.0
        loss = sum(self._backward(rows, total) for rows in groups)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
        factor = lr_factor(progress.step, self.plan)
        for optimizer, peak in zip(self.optimizers, peak_rates(self.plan), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += self.plan.tokens_per_step
        progress.seconds += self.clock() - started
        if progress.step % CURVE_EVERY == 0:
            point = {"tokens": float(progress.tokens), "loss": loss, "lr": factor}
            progress.curve.append(point)
        return loss

    def _backward(self, rows: Rows, total: float) -> float:
        parts = (None if part is None else part.to(self.device) for part in rows)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self.loss(self.model, *parts, self.teacher, self.plan.distilled) / total
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def run(self, until: int, *, after_step: Callable[[float], bool] = lambda _: False) -> None:
        """Train up to step `until`, or until `after_step`, given the loss, says stop."""
        while self.progress.step < until:
            if after_step(self.step()):
                return
