"""Measured step times: out of the files that `headgate bench engine --json` writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.planner.errors import PlanError
from gateway.planner.shapes import WEIGHT_BYTES, ModelShape, shape_of
from gateway.planner.steps import Fitted, MeasuredStep, fit

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16", "none": "fp32"}


def measured_steps(paths: Sequence[Path]) -> list[MeasuredStep]:
    """Every batch of every file as two steps: its prefill and one of its decode steps.

    Raises:
        PlanError: a file is missing or is no output of `bench engine`.
    """
    found: list[MeasuredStep] = []
    for path in paths:
        try:
            raw = json.loads(path.read_bytes())
            shape = shape_of(str(raw["model"]))
            precision = _precision(raw.get("quantization"))
            for row in raw["results"]:
                found += _steps(shape, precision, row)
        except OSError as error:
            raise PlanError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(
                f"{path}: no output of `headgate bench engine --json` ({error!r})"
            ) from None
    return found


def calibrated(paths: Sequence[Path], shape: ModelShape, precision: str) -> Fitted:
    """A step model for `shape` on the machine that the files were measured on."""
    source = ", ".join(path.name for path in paths)
    return fit(measured_steps(paths), shape, precision, source)


def _precision(quantization: Any) -> str:
    word = str(quantization or "none").lower()
    word = _PRECISIONS.get(word, word)
    if word not in WEIGHT_BYTES:
        raise ValueError(f"quantization {quantization!r}")
    return word


def _steps(shape: ModelShape, precision: str, row: dict[str, Any]) -> list[MeasuredStep]:
    batch, prompt = int(row["batch"]), int(row["prompt_tokens"])
    output = int(row["output_tokens"])
    steps = [
        MeasuredStep(
            shape=shape,
            precision=precision,
            tokens=batch * prompt,
            sequences=batch,
            kv_tokens=batch * prompt // 2,
            seconds=batch * prompt / float(row["prefill_tokens_per_s"]),
        )
    ]
    if output > 1:
        steps.append(
            MeasuredStep(
                shape=shape,
                precision=precision,
                tokens=batch,
                sequences=batch,
                kv_tokens=batch * (prompt + output // 2),
                seconds=batch / float(row["decode_tokens_per_s"]),
            )
        )
    return steps
