"""Prefill and decode speed of one model: `python -m backends.bench.engine --model M --json`.

Runs the engine in this process, without HTTP: random prompts, greedy, no prefix reuse, no
speculation. tokens/s are totals over the batch; times are wall times. The roofline is measured
first, in this process; weights in a CPU's caches are read faster than that (a share above 1).
With --traces also a mixed load: recorded lengths and moments, scaled to the model and the machine.
"""

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from msgspec import Struct

from backends.bench.head import commit
from backends.bench.roofline import Machine, measure_machine, roofline_share
from backends.bench.traces import read_trace, run_trace
from backends.command import exit_with
from backends.contract import SamplingParams
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.model_runner import ModelRunner
from backends.engine.options import read_options
from backends.errors import BackendError
from backends.quantization.schemes import AT_LOAD

_WARM_UP_TOKENS: Final = 4
_STATUS: Final = Path("/proc/self/status")


class Timings(Struct, kw_only=True):
    """When the tokens of one batch came, seconds."""

    ttft_s: list[float]
    tpot_s: list[float]
    """One per request: mean time between its tokens."""
    prefill_s: float
    """Until every request had its first token."""
    decode_s: float
    """From there to the end."""
    decode_tokens: int
    step_s: float
    """Median step in which every request decoded."""


def time_batch(engine: Engine, prompts: Sequence[Sequence[int]], output_tokens: int) -> Timings:
    """Answer prompts together, each with exactly `output_tokens` tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    began = time.perf_counter()
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, params)
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    steps: list[float] = []
    prefilled, late_tokens = began, 0
    while engine.has_unfinished:
        started = time.perf_counter()
        events = engine.step()
        now = time.perf_counter()
        decoding = len(first) == len(prompts)
        for event in events:
            if event.token_ids:
                first.setdefault(event.request_id, now)
                last[event.request_id] = now
        if decoding:
            late_tokens += sum(len(event.token_ids) for event in events)
            steps.append(now - started)
        elif len(first) == len(prompts):
            prefilled = now
    return Timings(
        ttft_s=[stamp - began for stamp in first.values()],
        tpot_s=[(last[name] - first[name]) / max(1, output_tokens - 1) for name in first],
        prefill_s=prefilled - began,
        decode_s=max(last.values()) - prefilled,
        decode_tokens=late_tokens,
        step_s=statistics.median(steps) if steps else 0.0,
    )


def bench(
    engine: Engine, runner: ModelRunner, machine: Machine, batch: int, prompt: int, output: int
) -> dict[str, Any]:
    """Measure one batch size; the row of the contract's `results`."""
    _forget_peak(runner.device)
    random = np.random.default_rng(batch)
    vocabulary = engine.tokenizer.vocab_size
    prompts = random.integers(0, vocabulary, (batch, prompt)).tolist()
    time_batch(engine, prompts, min(output, _WARM_UP_TOKENS))
    times = time_batch(engine, prompts, output)
    context = batch * (prompt + output // 2)
    share = roofline_share(
        machine,
        step_s=times.step_s,
        step_bytes=runner.model.step_bytes + context * engine.config.kv_bytes_per_token,
        step_flops=2 * batch * runner.model.step_weights,
    )
    return {
        "batch": batch,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "prefill_tokens_per_s": _round(batch * prompt / times.prefill_s),
        "decode_tokens_per_s": _round(times.decode_tokens / times.decode_s) if output > 1 else None,
        "ttft_p50_s": _round(float(np.quantile(times.ttft_s, 0.5))),
        "ttft_p99_s": _round(float(np.quantile(times.ttft_s, 0.99))),
        "tpot_p50_s": _round(float(np.quantile(times.tpot_s, 0.5))),
        "tpot_p99_s": _round(float(np.quantile(times.tpot_s, 0.99))),
        "roofline_share": share,
        "peak_memory_bytes": _peak_memory_bytes(runner.device),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load the model and measure every batch size."""
    batches = [int(word) for word in arguments.batch.split(",")]
    length = arguments.prompt_tokens + arguments.output_tokens
    traces = arguments.traces
    trace = read_trace(traces, arguments.trace_requests) if traces else []
    options = read_options(
        {
            "model": arguments.model,
            "quantization": arguments.quantization,
            "dtype": arguments.dtype,
            "device": arguments.device,
            "threads": arguments.threads,
            "max_num_seqs": max(batches),
            # One more than needed for each: the scheduler admits nobody without a spare block.
            "num_blocks": None if trace else max(batches) * (-(-length // 16) + 1),
            "enable_prefix_caching": False,
            "speculation": {"method": "off"},
        }
    )
    engine = build_engine(options)
    runner = engine.runner
    assert isinstance(runner, ModelRunner)
    model = runner.model
    machine = measure_machine(
        runner.device, model.embedding.dtype, int8=model.quantization in ("int8", "int4")
    )
    results = [
        bench(engine, runner, machine, batch, arguments.prompt_tokens, arguments.output_tokens)
        for batch in batches
    ]
    mixed = {"mixed": {"traces": traces.name, **run_trace(engine, trace)}} if trace else {}
    return {
        "commit": commit(),
        "device": machine.name,
        "model": arguments.model,
        "quantization": model.quantization,
        "dtype": str(model.embedding.dtype).removeprefix("torch."),
        "kv_cache_dtype": engine.about["kv_cache_dtype"],
        "threads": torch.get_num_threads(),
        "memory_bytes_per_s": _round(machine.bytes_per_s),
        "flops_per_s": _round(machine.flops_per_s),
        "workload": "random prompts, greedy, no prefix reuse, no speculation",
        "results": results,
        **mixed,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="headgate bench engine", description=__doc__)
    parser.add_argument("--model", required=True, help="bundled:NAME, a folder or a .gguf file")
    parser.add_argument("--batch", default="1,16", help="batch sizes, comma-separated")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, help="CPU threads per forward pass")
    parser.add_argument("--quantization", choices=AT_LOAD, help="round linear weights at load")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument(
        "--traces", type=Path, help="also answer this recorded traffic (CSV, JSONL)"
    )
    parser.add_argument("--trace-requests", type=int, default=128, help="so many of its requests")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    try:
        _check(arguments)
        figures = run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures, indent=2) if arguments.json else _table(figures))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    words = arguments.batch.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ValueError(f"--batch is {arguments.batch!r}; allowed: sizes such as 1,16")
    for name in ("prompt_tokens", "output_tokens", "trace_requests"):
        value = getattr(arguments, name)
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; allowed: at least 1")


def _table(figures: dict[str, Any]) -> str:
    """Lay the rows out for reading."""
    keys = [key for key in figures["results"][0] if key not in ("prompt_tokens", "output_tokens")]
    rows = [keys, *[[str(row[key]) for key in keys] for row in figures["results"]]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(keys))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    head = (
        f"{figures['model']} on {figures['device']}, {figures['threads']} threads; "
        f"{figures['results'][0]['prompt_tokens']} + {figures['results'][0]['output_tokens']} "
        f"tokens; roof: {figures['memory_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"{figures['flops_per_s'] / 1e9:.0f} GFLOP/s"
    )
    mixed = figures.get("mixed", {})
    return "\n".join([head, *lines, *(f"mixed: {key} {value}" for key, value in mixed.items())])


def _forget_peak(device: torch.device) -> None:
    """Begin to measure peak memory anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _STATUS.exists():
        with contextlib.suppress(OSError):  # Not everybody may; then the peak is the process's.
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has used since: the GPU's, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        words = _STATUS.read_text().split("VmHWM:", 1)[1].split(None, 1)
        return int(words[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _round(value: float) -> float:
    return float(f"{value:.5g}")


if __name__ == "__main__":
    exit_with(main)
