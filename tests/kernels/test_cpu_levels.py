"""What the C++ kernels are on other CPUs: every level that this one can run gives right numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import native

TIMEOUT_S = 600
"""A few seconds of an idle core, if the level's library is built already; many when shared."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not native.available(), reason="no C++ compiler here"),
    pytest.mark.timeout(TIMEOUT_S),
]

NEEDS = {"native": "", "vectors": "", "avx512": "avx512bw", "avx2": "avx2", "generic": ""}
TESTS = (
    "test_paged_attention.py",
    "test_gated_mul.py",
    "test_decoder.py",
    "test_group_quant_linear.py",
    "test_moe.py::test_expert_mlp_equals_the_reference",
    "test_store_kv.py::test_store_kv_converts_to_the_dtype_of_the_cache",
    "test_packed_linear.py::test_packed_linear_reads_16_bits_as_the_numbers_they_are",
    "test_packed_linear.py::test_packed_linear_splits_numbers_beside_16_bits_without_loss",
)

PRODUCTS = """
import hashlib, sys
import torch
from kernels.quant_linear import copies, quant_linear
from kernels import native
torch.manual_seed(0)
digest = hashlib.sha256()
weight, scale = torch.randint(-127, 128, (70, 300), dtype=torch.int8), torch.rand(70)
packed = copies(weight, scale, torch.float32).packed
for rows in (1, 2, 5, 16, 40, 200):
    x = torch.randn(rows, 300)
    digest.update(quant_linear(x, weight, scale, packed=packed).numpy().tobytes())
assert native.available()
print(digest.hexdigest())
"""


def _levels() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return [level for level, needed in NEEDS.items() if not needed or needed in flags]


def _run(level: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, native.ENV_CPU: level},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_every_level_is_known_here() -> None:
    """A new level needs to be tested."""
    assert set(NEEDS) == set(native.LEVELS)


def test_int8_products_have_the_same_bits_at_every_level() -> None:
    """Exact sums: tiles, vectors of any width and plain code agree to the last bit."""
    outputs = {}
    for level in _levels():
        done = _run(level, "-c", PRODUCTS)
        assert done.returncode == 0, done.stderr
        outputs[level] = done.stdout
    assert len(set(outputs.values())) == 1, outputs


@pytest.mark.parametrize("level", [level for level in _levels() if level != "native"])
def test_ops_are_right_at_every_level(level: str, tmp_path: Path) -> None:
    """The ops' own tests pass on what is compiled for less than this CPU."""
    tests = [f"tests/kernels/{test}" for test in TESTS]
    chosen = "native or decoder or 16_bits"
    done = _run(
        level, "-m", "pytest", "-q", "-x", "-n0", f"--basetemp={tmp_path}/own", "-k", chosen, *tests
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_an_unknown_level_is_named() -> None:
    """A typing error does not run something else in silence."""
    done = _run("sse9", "-c", "from kernels.native import available; available()")
    assert done.returncode == 1
    assert "HEADGATE_CPU='sse9' is not known; use one of" in done.stderr
