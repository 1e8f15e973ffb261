"""Building and loading the C++ paths: on first use, once per machine and source, by ctypes.

A compiler on the machine is enough: no headers of torch or Python, and a few seconds. The library
lies in the user's cache folder under the hash of everything it depends on. Where it cannot be
built, `available` says so once in the log and is false, and `dispatch` chooses eager torch.

It is compiled for the CPU at hand. ``HEADGATE_CPU=avx512|avx2|generic`` asks for less, to test what
runs on other machines; ``vectors`` is the CPU at hand without its matrix tiles (AMX). Whether tiles
or vectors are faster for so many rows is measured when the library is loaded, and logged.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kernels.errors import KernelError, KernelUnavailableError

ENV_CPU = "HEADGATE_CPU"
LEVELS = {
    "native": ("-march=native",),
    "vectors": ("-march=native", "-DNO_TILES"),
    "avx512": ("-march=skylake-avx512",),
    "avx2": ("-march=haswell",),
    "generic": (),
}
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fopenmp-simd", "-fno-math-errno")
BUILD_TIMEOUT_S = 120

_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
}
# Argument types by letter: p(ointer), i(nt), l(ong, 64 bits), f(loat).
_SIGNATURES = {
    "decoder_step": "pppp ippp i",
    "decoder_logits": "pp i pp i",
    "decoder_scratch_bytes": "p i",
    "packed_linear_f32": "ppppp iiiii",
    "packed_linear_scratch_bytes": "ii",
    "paged_attention_f32": "ppppp ii",
    "quant_linear_f32": "ppppp iiii",
    "quant_linear_packed_f32": "pppppp iiii",
    "quant_linear_scratch_bytes": "ii",
    "group_quant_linear_f32": "ppppp iiiiiii",
    "expert_mlp_f32": "pppppp l iiiii i",
    "lora_add_f32": "ppppp ii ll i",
    "measure_tiles": "",
    "measure_bf16_tiles": "",
    "measure_sketch": "",
    "rms_norm_f32": "ppppp f ii",
    "route_experts_f32": "ppp iiii",
    "rope_f32": "pppppp l iiii llll",
    "silu_mul_f32": "pp ii",
    "gelu_mul_f32": "pp ii",
    "store_kv_f32": "pppppp i ll",
}
_LONG_CALLS = frozenset(
    {
        "decoder_step",
        "decoder_logits",
        "expert_mlp_f32",
        "group_quant_linear_f32",
        "lora_add_f32",
        "packed_linear_f32",
        "paged_attention_f32",
        "quant_linear_f32",
        "quant_linear_packed_f32",
    }
)

logger = logging.getLogger("headgate.kernels")


def available() -> bool:
    """Whether the C++ paths can run here; builds and loads them when first asked."""
    return _path() is not None


@cache
def function(name: str) -> Callable[..., int]:
    """One C++ function by name.

    Raises:
        KernelUnavailableError: the library could not be built; the log says why.
    """
    path = _path()
    if path is None:
        raise KernelUnavailableError("the C++ kernels could not be built; the log says why")
    # A call of a few microseconds is not worth giving up the GIL.
    loader = ctypes.CDLL if name in _LONG_CALLS else ctypes.PyDLL
    loaded = loader(str(path))[name]
    loaded.argtypes = [_TYPES[letter] for letter in _SIGNATURES[name].replace(" ", "")]
    loaded.restype = ctypes.c_int64 if name.endswith("_bytes") else ctypes.c_int
    return loaded


def threads_for(multiplications: int) -> int:
    """Threads worth waking for this much work: one below about fifty microseconds."""
    return threads() if multiplications > 1 << 19 else 1


def require_ok(outcome: int) -> None:
    """Turn a C++ outcome into an error."""
    if outcome:
        raise KernelError(
            "a block id, slot, position, length or expert points outside what it is a place in"
        )


@cache
def _path() -> Path | None:
    if sys.platform != "linux":
        logger.warning("native_kernels_unavailable: built on Linux only; running eager torch")
        return None
    wanted = level()
    try:
        path = _built(wanted)
        library = ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("native_kernels_unavailable: %s; running eager torch", error)
        return None
    rows = library.measure_tiles()
    tiles = f"AMX tiles for int8 from {rows} rows on" if rows else "no tiles"
    if library.measure_bf16_tiles():
        tiles += ", for bf16 always"
    logger.info("cpu_kernels_chosen: level %s, %s, %d threads", wanted, tiles, threads())
    return path


def level() -> str:
    """What the library is compiled for.

    Raises:
        KernelUnavailableError: the environment asks for a level that there is not.
    """
    name = os.environ.get(ENV_CPU) or "native"
    if name not in LEVELS:
        raise KernelUnavailableError(f"{ENV_CPU}={name!r} is not known; use one of {list(LEVELS)}")
    return name


def threads() -> int:
    """Most threads of one call: torch's, which the engine sets."""
    return torch.get_num_threads()


def _built(level: str) -> Path:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise OSError(f"no C++ compiler found (tried CXX, {', '.join(COMPILERS)})")
    root = Path(__file__).parent
    flags = (*FLAGS, *LEVELS[level])
    digest = hashlib.sha256("\0".join((compiler, *flags, cpu_flags())).encode())
    for source in sorted([*root.glob("*.cpp"), *root.glob("*.h"), *root.glob("*/cpu.cpp")]):
        digest.update(source.read_bytes())
    folder = cache_folder()
    path = folder / f"kernels-{digest.hexdigest()[:20]}.so"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / path.name
            _compile([*compiler.split(), *flags], root / "native.cpp", fresh)
            fresh.replace(path)  # Atomic: another process sees all of it or nothing.
    return path


def _compile(command: list[str], source: Path, target: Path) -> None:
    done = subprocess.run(
        [*command, str(source), "-o", str(target)],
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr[-500:]}")


def cache_folder() -> Path:
    """Where things lie that hold for this machine and can be made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headgate"


def cpu_flags() -> str:
    """What -march=native depends on, and what is fast."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {flags}"
