"""Measured step times: out of the files of `headgate bench engine|serve --json`, and the ledger."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.planner.errors import PlanError
from gateway.planner.shapes import WEIGHT_BYTES, ModelShape, shape_of
from gateway.planner.steps import Fitted, Measured, Work, fit

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16", "none": "fp32"}
_STEP_TOKENS = 2048
"""The engine's max_num_batched_tokens: a longer batch of prompts takes several steps."""


def measured_work(paths: Sequence[Path]) -> list[Measured]:
    """Every result of every file as work and the time it took.

    Raises:
        PlanError: a file is missing or is no output of `bench engine` or `bench serve`.
    """
    found: list[Measured] = []
    for path in paths:
        try:
            raw = json.loads(path.read_bytes())
            shape = shape_of(str(raw["model"]))
            precision = precision_of(raw.get("quantization"))
            for row in raw["results"]:
                rows = _served(row["work"]) if "work" in row else _engine(row)
                found += [
                    Measured(shape=shape, precision=precision, work=work, seconds=seconds)
                    for work, seconds in rows
                ]
        except OSError as error:
            raise PlanError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise PlanError(
                f"{path}: no output of `headgate bench engine --json` or `bench serve --json` "
                f"({error!r})"
            ) from None
    return found


def calibrated(
    paths: Sequence[Path], shape: ModelShape, precision: str, kind: str = "cpu"
) -> Fitted:
    """A step model for `shape` on the machine that the files were measured on."""
    source = ", ".join(path.name for path in paths)
    return fit(measured_work(paths), shape, precision, source, kind)


def precision_of(quantization: Any) -> str:
    """The planner's name of a benchmark's or a backend's quantization."""
    word = str(quantization or "none").lower()
    word = _PRECISIONS.get(word, word)
    if word not in WEIGHT_BYTES:
        raise ValueError(f"quantization {quantization!r}; known: {', '.join(WEIGHT_BYTES)}")
    return word


def _served(work: dict[str, Any]) -> list[tuple[Work, float]]:
    """Rows of `bench serve`."""
    columns = work["columns"]
    found = []
    for row in work["rows"]:
        named = dict(zip(columns, map(float, row), strict=True))
        seconds = named.pop("seconds")
        if seconds > 0:
            found.append((Work(**named), seconds))
    return found


def _engine(row: dict[str, Any]) -> list[tuple[Work, float]]:
    """A batch of `bench engine`: its prompts, and one of its decode steps."""
    batch, prompt = int(row["batch"]), int(row["prompt_tokens"])
    output, tokens = int(row["output_tokens"]), batch * prompt
    steps = -(-tokens // _STEP_TOKENS)
    prefill = Work(steps=steps, prefill_tokens=tokens, prefill_attended=tokens * (prompt + 1) / 2)
    found = [(prefill, tokens / float(row["prefill_tokens_per_s"]))]
    if output > 1:
        attended = batch * (prompt + output / 2)
        decode = Work(decode_tokens=batch, decode_attended=attended)
        found.append((decode, batch / float(row["decode_tokens_per_s"])))
    return found
