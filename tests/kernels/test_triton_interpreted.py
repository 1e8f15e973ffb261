"""The Triton kernels, interpreted: the op tests again, in a process of their own.

Whether a kernel is interpreted is decided when its module is imported, from the environment.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
TIMEOUT_S = 600  # Under a minute of an idle core; many when others share it.
OP_TESTS = (
    "test_group_quant_linear.py",
    "test_invariance.py",
    "test_lora.py",
    "test_moe.py",
    "test_paged_attention.py",
    "test_quant_linear.py",
    "test_rms_norm.py",
    "test_rope.py",
    "test_rope_store.py",
    "test_sampling.py",
    "test_scaled_linear.py",
    "test_gated_mul.py",
    "test_store_kv.py",
    "test_tuning.py",
)

pytest.importorskip("triton")


@pytest.mark.timeout(TIMEOUT_S + 10)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="already interpreted")
def test_triton_kernels_equal_the_references_when_interpreted(tmp_path: Path) -> None:
    """Every op test passes on the interpreted kernels, and they are really run."""
    options = ["-q", f"--basetemp={tmp_path}/own", "-k", "triton"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(HERE / t) for t in OP_TESTS)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 10 * len(OP_TESTS)
