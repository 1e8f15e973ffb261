"""Every Triton kernel compiles for real GPUs, with no GPU here, and fits them.

`python -m tests.benchmarks.record_kernels` writes what each takes; the table must be complete.
"""

import importlib
import json
import os
import pkgutil
from pathlib import Path

import pytest
from compile_cases import CAPABILITIES, SHARED_LIMIT_BYTES, Compilation, all_cases, footprint

import kernels

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile"
)

RECORD = Path(__file__).parent.parent / "benchmarks" / "results" / "kernel_footprints.json"
CASES = [
    pytest.param(case, capability, id=f"sm_{capability}-{case.name}")
    for case in all_cases()
    for capability in CAPABILITIES
    if case.runs_on(capability)
]


@pytest.mark.parametrize(("case", "capability"), CASES)
def test_triton_kernel_compiles_and_fits(case: Compilation, capability: int) -> None:
    """A cubin comes out, its shared memory fits the GPU, and no register spills."""
    taken = footprint(case, capability)
    assert taken.shared_bytes <= SHARED_LIMIT_BYTES[capability]
    assert taken.spilled_bytes == 0, taken


def test_every_launched_kernel_is_compiled() -> None:
    """A new kernel needs rows in `compile_cases`; what kernels call is compiled with them."""
    import triton

    launched = set()
    for module in pkgutil.walk_packages(kernels.__path__, "kernels."):
        if module.name.rpartition(".")[2] in ("native", "reference", "cpu"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, triton.runtime.JITFunction) and name.endswith("_kernel"):
                launched.add((value.fn.__module__, value.fn.__name__))
    compiled = {(case.kernel.fn.__module__, case.kernel.fn.__name__) for case in all_cases()}
    assert compiled == launched


def test_recorded_footprints_cover_every_kernel() -> None:
    """The committed table has a row for each case and GPU, and no others, and shows no spill."""
    rows = json.loads(RECORD.read_text())["results"]
    recorded = {(row["kernel"], row["capability"]) for row in rows}
    wanted = {(case.name, c) for case in all_cases() for c in CAPABILITIES if case.runs_on(c)}
    assert recorded == wanted
    assert all(row["spilled_bytes"] == 0 for row in rows)
