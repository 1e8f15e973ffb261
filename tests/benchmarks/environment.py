"""The head of every benchmark file: commit, device, versions, workload."""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def describe(workload: str) -> dict[str, Any]:
    """What was measured, on what: the contract's `commit`, `device` and the workload in words."""
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD")
        + ("+" if _git("status", "-s", "--", ".", f":(exclude){RESULTS}") else ""),
        "device": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "load_average_1m": round(os.getloadavg()[0], 2),
        "workload": workload,
    }


def write(file: Path | None, figures: dict[str, Any]) -> None:
    """Write figures as JSON, if a file was named."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=2) + "\n")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    facts: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
    marks = [mark for mark in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx2") if mark in
             facts.get("flags", "").split()]  # fmt: skip
    return f"{facts.get('model name', platform.processor() or 'CPU')} ({', '.join(marks)})"
