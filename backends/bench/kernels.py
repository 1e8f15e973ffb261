"""Speed of every op by implementation and shape: `python -m backends.bench.kernels --json`.

Each implementation is first compared with the reference, then timed; the same inputs are used over
and over, so on a CPU small weights come from its caches. On a GPU, --tune measures the launch
options of each kernel, keeps the fastest in the user's cache folder and times those.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from backends.bench.head import commit
from backends.bench.kernel_cases import Case, cases, op_names
from backends.bench.roofline import Machine, measure_machine, roofline_share
from backends.command import exit_with
from backends.engine.factory import pick_device
from kernels.dispatch import Implementation, load
from kernels.errors import KernelError
from kernels.native import available
from kernels.tuning import Options, gpu_name, save, trying

_BUDGET_S: Final = 0.15
"""Time spent on one implementation of one case."""
_CODED: Final = frozenset({"quant_linear", "group_quant_linear", "packed_linear"})
"""Ops whose products a CPU has faster instructions for than for fp32's."""
_MOST_ERROR: Final = {torch.float32: 2e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Largest difference over largest value, beyond which a figure would be of something else. fp32
includes activations rounded to 16 bits."""


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen ops and return the contract's head and results."""
    device = pick_device(arguments.device)
    ops = frozenset(arguments.ops.split(",")) if arguments.ops else frozenset(op_names())
    if arguments.tune and device.type != "cuda":
        raise ValueError("--tune needs a GPU: the C++ kernels choose for themselves at load")
    if arguments.threads is not None and device.type == "cpu":
        torch.set_num_threads(arguments.threads)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    machine = measure_machine(device, dtype)
    coded = measure_machine(device, dtype, int8=True) if device.type == "cpu" else machine
    measured: dict[str, dict[str, Options]] = {}
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for case in cases(device, ops):
            best_of = coded if case.op in _CODED else machine
            if arguments.tune and case.tunable is not None:
                best = _tune(case, device)
                if best is not None:
                    measured.setdefault(case.tunable.kernel, {})[case.tunable.shape] = best
                    with trying(case.tunable.kernel, case.tunable.shape, device, best):
                        results += _rows(case, device, best_of)
                    continue
            results += _rows(case, device, best_of)
    head = {
        "commit": commit(),
        "device": machine.name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "memory_bytes_per_s": _round(machine.bytes_per_s),
        "flops_per_s": _round(machine.flops_per_s),
        "coded_flops_per_s": _round(coded.flops_per_s),
        "workload": "each op alone, the same inputs over and over, medians",
    }
    if measured:
        head["tuned_file"] = str(save(gpu_name(device), head, measured))
    return {**head, "results": results}


def _rows(case: Case, device: torch.device, machine: Machine) -> Iterator[dict[str, Any]]:
    """One row per implementation that runs here, torch's nearest op last."""
    expected = case.call(load(case.op, "reference"))
    for name in _implementations(device):
        op = load(case.op, name)
        if name != "reference" and op is load(case.op, "reference"):
            continue
        yield _row(case, name, partial(case.call, op), expected, device, machine)
    if case.torch is not None:
        compared = expected if case.torch_agrees else None
        yield _row(case, "torch", case.torch, compared, device, machine)


def _implementations(device: torch.device) -> list[Implementation]:
    if device.type == "cuda":
        return ["triton", "reference"]
    return [*(["native"] if available() else []), "torch_cpu", "reference"]  # type: ignore[list-item]


def _row(
    case: Case,
    name: str,
    work: Callable[[], Tensor],
    expected: Tensor | None,
    device: torch.device,
    machine: Machine,
) -> dict[str, Any]:
    error = None if expected is None else _error(work(), expected)
    if error is not None and error > _MOST_ERROR.get(work().dtype, 0.0):
        raise KernelError(f"{name} {case.op} ({case.shape}) is off the reference by {error:.2g}")
    seconds = _seconds(work, device)
    return {
        "op": case.op,
        "shape": case.shape,
        "implementation": name,
        "time_s": _round(seconds),
        "bytes_per_s": _round(case.bytes_moved / seconds),
        "flops_per_s": _round(case.flops / seconds),
        "roofline_share": roofline_share(
            machine, step_s=seconds, step_bytes=case.bytes_moved, step_flops=case.flops
        ),
        "max_error": None if error is None else _round(error),
    }


def _tune(case: Case, device: torch.device) -> Options | None:
    """Return the fastest options of a case's kernel; None if its own choice is the fastest."""
    assert case.tunable is not None
    op = load(case.op, "triton")
    expected = case.call(op)
    best, best_s = None, _seconds(lambda: case.call(op), device)
    for options in case.tunable.candidates():
        with trying(case.tunable.kernel, case.tunable.shape, device, options):
            try:
                error = _error(case.call(op), expected)
                seconds = _seconds(lambda: case.call(op), device)
            except Exception as failure:  # too large for this GPU, in one of Triton's many ways
                print(f"skipped {case.tunable.kernel} {options}: {failure}", file=sys.stderr)
                continue
        if error <= _MOST_ERROR[expected.dtype] and seconds < best_s:
            best, best_s = options, seconds
    return best


def _error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value; whole numbers must be the same."""
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else float("inf")
    difference = (actual.float() - expected.float()).abs().amax()
    return float(difference / expected.float().abs().amax().clamp(min=1e-9))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median time of one call; on a GPU with cold caches, without the launch."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(work, return_mode="median")) / 1e3
    work()
    took: list[float] = []
    ends = time.perf_counter() + _BUDGET_S
    while len(took) < 5 or (time.perf_counter() < ends and len(took) < 1000):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="headgate bench kernels", description=__doc__)
    parser.add_argument("--ops", help=f"comma-separated, of: {', '.join(op_names())}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--tune", action="store_true", help="measure and keep launch options")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    try:
        _check(arguments)
        figures = run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures, indent=2) if arguments.json else _table(figures))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    unknown = set((arguments.ops or "").split(",")) - {"", *op_names()}
    if unknown:
        raise ValueError(f"--ops has {sorted(unknown)}; known: {', '.join(op_names())}")
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"--threads is {arguments.threads}; allowed: at least 1")


def _table(figures: dict[str, Any]) -> str:
    """Lay the rows out for reading."""
    lines = [
        f"{figures['device']}, {figures['threads']} threads, {figures['dtype']}",
        f"roof: {figures['memory_bytes_per_s'] / 1e9:.1f} GB/s from memory, "
        f"{figures['flops_per_s'] / 1e9:.0f} GFLOP/s in {figures['dtype']}, "
        f"{figures['coded_flops_per_s'] / 1e9:.0f} with coded weights, as measured "
        "just now; a share above 1: from caches",
        f"{'op':16} {'shape':44} {'by':10}{'time':>12}    {'bytes':>9}      {'operations':>11}"
        "          of the roof",
    ]
    for row in figures["results"]:
        share = row["roofline_share"]
        lines.append(
            f"{row['op']:16} {row['shape']:44} {row['implementation']:10}"
            f"{row['time_s'] * 1e6:12.1f} us {row['bytes_per_s'] / 1e9:9.1f} GB/s"
            f"{row['flops_per_s'] / 1e9:11.1f} GFLOP/s  {share if share is not None else '-'}"
        )
    return "\n".join(lines)


def _round(value: float) -> float:
    return float(f"{value:.5g}")


if __name__ == "__main__":
    exit_with(main)
