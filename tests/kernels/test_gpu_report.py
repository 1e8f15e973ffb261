"""`make test-gpu`: its report counts what pytest said, and no GPU is no success."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.run_gpu import NO_GPU, read_report

ROOT = Path(__file__).parent.parent.parent


def test_gpu_report_counts_and_names(tmp_path: Path) -> None:
    """Passed, failed, errors and skipped are told apart; failures are named."""
    file = tmp_path / "report.xml"
    file.write_text(
        """<testsuites><testsuite><testcase name="a[triton-cuda]"/><testcase name="b"/>
        <testcase name="c"><failure message="x">y</failure></testcase>
        <testcase name="d"><error message="x"/></testcase>
        <testcase name="e"><skipped/></testcase></testsuite></testsuites>"""
    )
    assert read_report(file) == {
        "passed": 2,
        "failed": 2,
        "skipped": 1,
        "on_gpu": 1,
        "failures": ["c", "d"],
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_tests_without_a_gpu_are_no_success() -> None:
    """The script says that nothing was tested, and exits with an error."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.run_gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == NO_GPU
    assert "nothing was tested" in done.stderr
