"""Load on a running server, and how fast it answered: `python -m backends.bench.serve --json`.

Every result has beside its figures the work that stood behind them
(`backends.bench.served_work`), so that `headgate plan --measured` can calibrate its step times.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import uvloop

from backends.bench.head import commit, processor
from backends.bench.load_client import Answered, Server, run_concurrent, run_paced
from backends.bench.served_work import WORK, work_rows
from backends.bench.traces import TraceRequest, read_trace
from backends.command import exit_with

_SIGMA: Final = 0.8
_MOST: Final = 4.0
"""Times the mean: no longer."""
_LENGTHS: Final = 256


def requests(prompt: int, output: int, *, spread: bool = True) -> list[TraceRequest]:
    """Of those lengths, or around them as chats are: log-normal, a long tail; always the same ones.

    Answers of one length end together and are followed by prompts that are computed together, as
    real ones never are; step times calibrated by such a load are too short for others.
    """
    draw = random.Random(1)

    def one(mean: int) -> int:
        factor = draw.lognormvariate(-_SIGMA * _SIGMA / 2, _SIGMA) if spread else 1.0
        return max(1, round(mean * min(factor, _MOST)))

    return [
        TraceRequest(at_s=0.0, prompt_tokens=one(prompt), output_tokens=one(output))
        for _ in range(_LENGTHS)
    ]


def poisson(load: Sequence[TraceRequest], rate: float, seconds: float) -> list[TraceRequest]:
    """The same requests, from the start again when they are through, at random moments."""
    draw, at_s = random.Random(2), 0.0
    found: list[TraceRequest] = []
    while (at_s := at_s + draw.expovariate(rate)) < seconds:
        one = load[len(found) % len(load)]
        found.append(
            TraceRequest(
                at_s=at_s, prompt_tokens=one.prompt_tokens, output_tokens=one.output_tokens
            )
        )
    return found


def figures(answers: Sequence[Answered]) -> dict[str, Any]:
    """A result: rates over all from the first request to the last token, times, the work.

    Raises:
        ValueError: nothing was answered.
    """
    good = [one for one in answers if not one.problem and one.times_s]
    if not good:
        why = answers[0].problem if answers else "no request was sent"
        raise ValueError(f"nothing was answered: {why}")
    seconds = max(one.times_s[-1] for one in good) - min(one.sent_s for one in good)
    prompt, output = (
        sum(getattr(one, f"{k}_tokens") for one in good) for k in ("prompt", "output")
    )
    ttft = [one.times_s[0] - one.sent_s for one in good]
    tpot = [
        (one.times_s[-1] - one.times_s[0]) / (one.output_tokens - 1)
        for one in good
        if one.output_tokens > 1
    ]
    return {
        "requests": len(good),
        "errors": len(answers) - len(good),
        "seconds": _round(seconds),
        "prompt_tokens": _round(prompt / len(good)),
        "output_tokens": _round(output / len(good)),
        "requests_per_s": _round(len(good) / seconds),
        "output_tokens_per_s": _round(output / seconds),
        "tokens_per_s": _round((prompt + output) / seconds),
        **{
            f"{name}_p{percent}_s": _round(float(np.quantile(values, percent / 100)))
            for name, values in (("ttft", ttft), ("tpot", tpot))
            for percent in (50, 99)
            if values
        },
        "work": {"columns": WORK, "rows": work_rows(good)},
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Put every load on the server, one after another."""
    server = Server(
        base_url=arguments.base_url.rstrip("/"), model=arguments.model, api_key=arguments.api_key
    )
    asked = requests(
        arguments.prompt_tokens, arguments.output_tokens, spread=arguments.lengths == "spread"
    )
    loads: list[tuple[dict[str, Any], Any]] = [
        (
            {"load": f"{count} at once", "concurrency": count},
            lambda count=count: run_concurrent(server, asked, count, arguments.seconds),
        )
        for count in _numbers("concurrency", arguments.concurrency, int)
    ]
    for rate in _numbers("rate", arguments.rate, float):
        drawn = poisson(asked, rate, arguments.seconds)
        head = {"load": f"{rate:g}/s, Poisson", "rate": rate}
        loads.append((head, lambda drawn=drawn: run_paced(server, drawn)))
    if arguments.trace is not None:
        recorded = _trace(arguments)
        head = {"load": arguments.trace.name, "rate": len(recorded) / arguments.seconds}
        loads = [(head, lambda: run_paced(server, recorded))]
    if not loads:
        raise ValueError("give a load: --concurrency 1,16, --rate 5 or --trace FILE")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = []
        for head, start in loads:
            runner.run(run_concurrent(server, asked, 1, 0.2))  # connections and caches get warm
            results.append({**head, **figures(runner.run(start()))})
    here = urlsplit(server.base_url).hostname in ("127.0.0.1", "localhost", "::1")
    return {
        "commit": commit(),
        "device": arguments.device or (processor() if here else "unknown: give --device"),
        "model": arguments.shape or arguments.model,
        "quantization": arguments.quantization,
        "workload": f"random prompts, {arguments.lengths} lengths, greedy, streamed over HTTP",
        "results": results,
    }


def _trace(arguments: argparse.Namespace) -> list[TraceRequest]:
    """The trace's first requests, at --rate, so many as last the wanted time."""
    rates = _numbers("rate", arguments.rate, float)
    if len(rates) != 1:
        raise ValueError("--trace needs one --rate: recorded gaps are stretched to it")
    trace = read_trace(arguments.trace, max(2, round(rates[0] * arguments.seconds)))
    return paced(trace, rates[0], arguments.trace_scale)


def paced(trace: Sequence[TraceRequest], rate: float, scale: float) -> list[TraceRequest]:
    """The same requests with all lengths times `scale`, at `rate` a second on average."""
    stretch = (len(trace) - 1) / rate / (trace[-1].at_s - trace[0].at_s)
    return [
        TraceRequest(
            at_s=(one.at_s - trace[0].at_s) * stretch,
            prompt_tokens=max(1, round(one.prompt_tokens * scale)),
            output_tokens=max(1, round(one.output_tokens * scale)),
        )
        for one in trace
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="headgate bench serve", description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, help="the name that the server answers to")
    parser.add_argument(
        "--shape", help="what it is, for `headgate plan`: 8B, a folder, bundled:NAME"
    )
    parser.add_argument("--quantization", help="of its weights: int8, int4, fp8, bf16")
    parser.add_argument("--api-key")
    parser.add_argument("--device", help="what the server runs on; default: this machine's CPU")
    parser.add_argument("--concurrency", default="", help="so many at once, comma-separated")
    parser.add_argument("--rate", default="", help="so many a second, Poisson, comma-separated")
    parser.add_argument("--trace", type=Path, help="recorded traffic (CSV, JSONL), at one --rate")
    parser.add_argument("--trace-scale", type=float, default=1.0, help="of the trace's lengths")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="of the mean request")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument(
        "--lengths", choices=("spread", "fixed"), default="spread", help="around those means"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="each load")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    try:
        for name in ("prompt_tokens", "output_tokens", "seconds", "trace_scale"):
            if getattr(arguments, name) <= 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(arguments, name)}: over 0"
                )
        found = run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, TimeoutError) as error:
        print(f"error: {arguments.base_url}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2) if arguments.json else _table(found))
    return 0


def _numbers(name: str, text: str, kind: Any) -> list[Any]:
    try:
        found = [kind(word) for word in text.split(",") if word.strip()]
    except ValueError:
        found = [0]
    if any(value <= 0 for value in found):
        raise ValueError(f"--{name} is {text!r}; allowed: numbers over 0, such as 1,16")
    return found


def _table(found: dict[str, Any]) -> str:
    """Lay the rows out for reading."""
    keys = [key for key in found["results"][0] if key not in ("work", "concurrency", "rate")]
    rows = [keys, *[[str(row[key]) for key in keys] for row in found["results"]]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(keys))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([f"{found['model']} on {found['device']}", *lines])


def _round(value: float) -> float:
    return float(f"{value:.5g}")


if __name__ == "__main__":
    exit_with(main)
