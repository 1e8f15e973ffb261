"""`headgate bench engine` prints the contract's keys, and refuses nonsense."""

import gzip
import json
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_tokenizers import save_folder

from backends.bench.engine import _forget_peak, _peak_memory_bytes, main
from backends.bench.roofline import Machine, measure_machine, roofline_share

RESULT_KEYS = {
    "batch",
    "prompt_tokens",
    "output_tokens",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "roofline_share",
    "peak_memory_bytes",
}


def test_bench_engine_prints_the_contracts_json(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Head and one row per batch size; rates are positive and consistent with the times."""
    folder = save_folder(make_checkpoint())
    flags = ["--batch", "1,3", "--prompt-tokens", "20", "--output-tokens", "8", "--threads", "1"]
    assert main(["--model", str(folder), "--quantization", "int8", "--json", *flags]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"commit", "device", "model", "quantization", "results"} <= set(figures)
    assert figures["quantization"] == "int8"
    assert [row["batch"] for row in figures["results"]] == [1, 3]
    for row in figures["results"]:
        assert set(row) == RESULT_KEYS
        assert all(row[key] > 0 for key in RESULT_KEYS)
        assert row["ttft_p50_s"] <= row["ttft_p99_s"]
        assert row["decode_tokens_per_s"] <= 1.5 * row["batch"] / row["tpot_p50_s"]


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl"])
def test_bench_engine_answers_a_recorded_load(
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    kind: str,
) -> None:
    """Lengths shrink until the longest request fits; rates and latencies are of the same run."""
    folder = save_folder(make_checkpoint())
    trace = tmp_path / f"trace.{kind}"
    if kind == "jsonl":
        row = '{"timestamp": %d, "input_length": 900, "output_length": 40}\n'
        trace.write_text("".join(row % (1000 * index) for index in range(9)))
    else:
        rows = "".join(f"2023-11-16 18:15:{index + 10}.5000000,900,40\n" for index in range(9))
        with gzip.open(trace, "wt") as file:
            file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    flags = ["--batch", "4", "--prompt-tokens", "4", "--output-tokens", "2", "--threads", "1"]
    traces = ["--traces", str(trace), "--trace-requests", "6"]
    assert main(["--model", str(folder), "--json", *flags, *traces]) == 0
    mixed = json.loads(capsys.readouterr().out)["mixed"]
    assert mixed["requests"] == 6
    assert mixed["lengths_divided_by"] == 4  # 940 tokens into a context of 256
    assert mixed["prompt_tokens"] == 6 * (900 // 4)
    assert mixed["output_tokens"] == 6 * 10
    assert 0 < mixed["ttft_p50_s"] <= mixed["ttft_p99_s"]
    assert 0 < mixed["tpot_p50_s"] <= mixed["tpot_p99_s"]
    assert mixed["paced_tokens_per_s"] < 1.1 * mixed["at_once_tokens_per_s"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--model", "/nowhere"], 1, "is no folder"),
        (["--model", "bundled:nano", "--batch", "1,x"], 2, "--batch is '1,x'"),
        (["--model", "bundled:nano", "--output-tokens", "0"], 2, "--output-tokens is 0"),
        (["--model", "bundled:nano", "--dtype", "int3"], 2, "allowed: 'auto', 'float32'"),
        (["--model", "bundled:nano", "--traces", "/nowhere"], 2, "--traces '/nowhere' cannot"),
    ],
)
def test_bench_engine_refuses_nonsense(
    flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 for bad usage, 1 for a model that cannot be served; the reason on stderr."""
    assert main(flags) == code
    assert message in capsys.readouterr().err


def test_roofline_share_takes_the_slower_of_memory_and_arithmetic() -> None:
    """The share is the bound that binds over the measured step."""
    machine = Machine(name="m", bytes_per_s=100.0, flops_per_s=1000.0)
    assert roofline_share(machine, step_s=2.0, step_bytes=100, step_flops=10) == 0.5
    assert roofline_share(machine, step_s=2.0, step_bytes=1, step_flops=1000) == 0.5
    assert roofline_share(machine, step_s=0.0, step_bytes=1, step_flops=1) is None


def test_measured_rates_are_those_of_a_computer() -> None:
    """Between a hundred megabytes and a petabyte a second, and likewise for arithmetic."""
    machine = measure_machine(torch.device("cpu"), torch.float32)
    assert 1e8 < machine.bytes_per_s < 1e15
    assert 1e8 < machine.flops_per_s < 1e17


def test_peak_memory_is_counted_anew_for_each_batch() -> None:
    """What was needed before and given back is not part of a later peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("peaks cannot be reset here")
    device = torch.device("cpu")
    with mmap.mmap(-1, 64 << 20) as large:  # an allocator might keep what it gets back
        large.write(b"1" * len(large))
        before = _peak_memory_bytes(device)
    _forget_peak(device)
    assert _peak_memory_bytes(device) < before - (32 << 20)
