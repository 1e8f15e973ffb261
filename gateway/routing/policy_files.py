"""Putting a version of a policy into its file: gateways read it with the next request."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path


def file_of(name: str, folders: Sequence[str]) -> Path:
    """Where the policy stands, links followed; else where it would be put.

    Raises:
        ValueError: there is no folder to write to.
    """
    for folder in folders:
        file = Path(folder) / f"{name}.toml"
        if file.exists():
            return file.resolve()
    if not folders:
        raise ValueError("routing.policy_dirs is empty: there is no folder to write to")
    return Path(folders[0]) / f"{name}.toml"


def replace(target: Path, text: str) -> None:
    """Write so that a reader sees the old file or the new one, never a half. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, newline="") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    os.replace(file.name, target)  # noqa: PTH105 (both are names here)
