"""Launch options that were measured on one kind of GPU, found by the shape's class.

A file per GPU: `kernels/tuned_<gpu>.json` ships where somebody measured it, and the user's own in
the cache folder, written by `headgate bench kernels --tune`, goes before it. Where neither says
anything, a kernel's own choice stands: it is known to fit every GPU, not to be the fastest.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

Options = dict[str, Any]
Table = dict[str, dict[str, Options]]
"""Kernel -> shape class -> options."""

_ROWS = (1, 4, 16, 32, 64, 128, 256, 1024)


def tuned(kernel: str, shape: str, device: torch.device, chosen: Options) -> Options:
    """Return `chosen` with what was measured for this kernel and shape class on this GPU."""
    measured = _table(gpu_name(device)).get(kernel)
    if not measured or shape not in measured:
        return chosen
    return {**chosen, **measured[shape]}


def rows_class(rows: int) -> str:
    """The class of a number of rows: the least of a few sizes that holds it."""
    return next((f"m{size}" for size in _ROWS if rows <= size), "many")


def linear_class(rows: int, channels: int, inputs: int, dtype: torch.dtype) -> str:
    """The class of a product's shape: layers are few and recur, rows are sorted into sizes."""
    name = str(dtype).removeprefix("torch.")
    return f"{rows_class(rows)}-n{channels}-k{inputs}-{name}"


@cache
def gpu_name(device: torch.device) -> str:
    """What the file of this device is called, without its ending."""
    if device.type != "cuda":
        return device.type
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def user_file(name: str) -> Path:
    """Where `--tune` writes for a GPU of this name."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "headgate" / "tuned" / f"{name}.json"


@contextmanager
def trying(kernel: str, shape: str, device: torch.device, options: Options) -> Iterator[None]:
    """Use these options for one kernel and shape class, for as long as the block runs."""
    shapes = _table(gpu_name(device)).setdefault(kernel, {})
    before = shapes.get(shape)
    shapes[shape] = options
    try:
        yield
    finally:
        del shapes[shape]
        if before is not None:
            shapes[shape] = before


def save(name: str, head: Mapping[str, Any], measured: Table) -> Path:
    """Add measurements to the user's file for a GPU, and use them from now on."""
    file = user_file(name)
    table = _read(file)
    for kernel, shapes in measured.items():
        table.setdefault(kernel, {}).update(shapes)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({**head, "options": table}, indent=1, sort_keys=True) + "\n")
    fresh.replace(file)
    _table.cache_clear()
    return file


@cache
def _table(name: str) -> Table:
    table = _read(Path(__file__).parent / f"tuned_{name}.json")
    for kernel, shapes in _read(user_file(name)).items():
        table.setdefault(kernel, {}).update(shapes)
    return table


def _read(file: Path) -> Table:
    if not file.is_file():
        return {}
    table: Table = json.loads(file.read_text())["options"]
    return table
