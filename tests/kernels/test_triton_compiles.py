"""Every Triton kernel compiles for real GPUs, with no GPU here, and fits them.

`python -m tests.benchmarks.record_kernels` writes what each takes; the table must be complete.
"""

import json
import os
from pathlib import Path

import pytest
from compile_cases import CAPABILITIES, SHARED_LIMIT_BYTES, Compilation, all_cases, footprint

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


def test_recorded_footprints_cover_every_kernel() -> None:
    """The committed table has a row for each case and GPU, and no others, and shows no spill."""
    rows = json.loads(RECORD.read_text())["results"]
    recorded = {(row["kernel"], row["capability"]) for row in rows}
    wanted = {(case.name, c) for case in all_cases() for c in CAPABILITIES if case.runs_on(c)}
    assert recorded == wanted
    assert all(row["spilled_bytes"] == 0 for row in rows)
