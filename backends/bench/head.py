"""What every `headgate bench` says first: the code and the machine. No torch."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def commit() -> str:
    """Name the code: the git commit it lies in, + if changed, else the installed version."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass  # installed from a wheel: there is no repository to name
    try:
        return version("headgate")
    except PackageNotFoundError:
        return "unknown"


def processor() -> str:
    """Name this machine's CPU and its logical cores."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(names) or 1} logical cores"
