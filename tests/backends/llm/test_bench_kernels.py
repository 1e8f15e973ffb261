"""`headgate bench kernels`: the contract's head, comparison before timing, and refusals."""

import json
import re

import pytest
import torch

from backends.bench.kernel_cases import SMALL, cases
from backends.bench.kernels import main
from kernels.dispatch import load

ROW_KEYS = {
    "op",
    "shape",
    "implementation",
    "time_s",
    "bytes_per_s",
    "flops_per_s",
    "roofline_share",
    "max_error",
}


def test_bench_kernels_prints_head_and_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Every implementation that runs here has a row per shape, beside torch's own op."""
    flags = ["--json", "--device", "cpu", "--threads", "1", "--ops", "rms_norm,silu_mul"]
    assert main(flags) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"commit", "device", "workload", "results"} <= set(figures)
    assert {row["op"] for row in figures["results"]} == {"rms_norm", "silu_mul"}
    for row in figures["results"]:
        assert set(row) == ROW_KEYS
        assert row["time_s"] > 0
        assert row["max_error"] < 1e-4
    measured = {row["implementation"] for row in figures["results"]}
    assert {"torch_cpu", "reference", "torch"} <= measured
    shapes = {row["shape"] for row in figures["results"] if row["op"] == "rms_norm"}
    assert len(shapes) == len(SMALL.rows)


def test_bench_kernels_lays_a_table_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json one line per row, under the device's name, the roof and the columns' names."""
    assert main(["--device", "cpu", "--threads", "1", "--ops", "silu_mul"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("roof: ")
    assert lines[2].startswith("op ")
    assert lines[3].startswith("silu_mul")
    assert "GB/s" in lines[3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ops", "rms_norm,warp"], r"--ops has \['warp'\]; known: paged_attention"),
        (["--threads", "0"], "--threads is 0"),
        (["--device", "cpu", "--tune"], "--tune needs a GPU"),
        (["--device", "quantum"], "allowed: auto, cpu, cuda"),
    ],
)
def test_bench_kernels_refuses_nonsense(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad flag is named, with what is allowed."""
    assert main(flags) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("op", ["rms_norm", "sample", "rope_store", "lora_add"])
def test_cases_count_what_their_op_moves(op: str) -> None:
    """A case calls the op it names, and its bytes are those of its smallest inputs at least."""
    for case in cases(torch.device("cpu"), frozenset({op})):
        assert case.op == op
        assert case.call(load(op, "reference")).shape[0] > 0
        assert case.bytes_moved > 0
        assert case.tunable is None, "nothing is tuned on a CPU"
