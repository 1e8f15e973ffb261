"""A recorded hour of traffic, scaled to a model and a machine, answered by an engine.

Two runs: all requests at once, which says what the engine can do, then at their recorded moments,
stretched so that they ask for a share of that. Prompts are random tokens of the recorded lengths.
"""

import csv
import gzip
import json
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct

from backends.contract import SamplingParams
from backends.engine.engine import Engine

OFFERED_SHARE: Final = 0.7
"""Of the most that the engine can do: what the paced run asks for."""


class TraceRequest(Struct, frozen=True, kw_only=True):
    """One recorded request."""

    at_s: float
    """Since the trace's first."""
    prompt_tokens: int
    output_tokens: int


def read_trace(file: Path, count: int) -> list[TraceRequest]:
    """Read the first `count` requests of a trace, gzipped or not.

    Args:
        file: CSV with TIMESTAMP, ContextTokens and GeneratedTokens (Azure's LLM traces), or JSON
            lines with timestamp in ms, input_length and output_length (Mooncake's).

    Raises:
        ValueError: the file is missing or has other columns.
    """
    try:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            is_json = ".jsonl" in file.suffixes
            rows = list(islice(_json_rows(lines) if is_json else _csv_rows(lines), count))
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(
            f"--traces {str(file)!r} cannot be read ({why}); name a CSV or JSONL file"
        ) from error
    except (KeyError, ValueError) as error:
        raise ValueError(f"--traces {str(file)!r} is no trace: {error!r}") from error
    if not rows:
        raise ValueError(f"--traces {str(file)!r} holds no requests")
    first = rows[0][0]
    return [
        TraceRequest(at_s=at - first, prompt_tokens=prompt, output_tokens=output)
        for at, prompt, output in rows
    ]


def run_trace(engine: Engine, trace: Sequence[TraceRequest]) -> dict[str, Any]:
    """Answer a trace twice; the `mixed` part of the benchmark's figures."""
    most = max(request.prompt_tokens + request.output_tokens for request in trace)
    scale = -(-most // engine.config.longest_sequence)
    lengths = [(max(1, r.prompt_tokens // scale), max(1, r.output_tokens // scale)) for r in trace]
    random = np.random.default_rng(0)
    prompts = [random.integers(0, engine.tokenizer.vocab_size, n).tolist() for n, _ in lengths]
    outputs = [output for _, output in lengths]
    tokens = sum(prompt + output for prompt, output in lengths)

    burst_s, _ = _answer(engine, prompts, outputs, [0.0] * len(trace))
    span_s = trace[-1].at_s or 1.0
    stretch = burst_s / OFFERED_SHARE / span_s
    arrivals = [request.at_s * stretch for request in trace]
    paced_s, latencies = _answer(engine, prompts, outputs, arrivals)
    ttft, tpot = zip(*latencies, strict=True)
    return {
        "requests": len(trace),
        "lengths_divided_by": scale,
        "times_multiplied_by": _round(stretch),
        "prompt_tokens": sum(prompt for prompt, _ in lengths),
        "output_tokens": sum(outputs),
        "at_once_tokens_per_s": _round(tokens / burst_s),
        "at_once_output_tokens_per_s": _round(sum(outputs) / burst_s),
        "offered_share": OFFERED_SHARE,
        "paced_tokens_per_s": _round(tokens / paced_s),
        **{
            f"{name}_p{percent}_s": _round(float(np.quantile(values, percent / 100)))
            for name, values in (("ttft", ttft), ("tpot", tpot))
            for percent in (50, 99)
        },
    }


def _answer(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[int],
    arrivals: Sequence[float],
) -> tuple[float, list[tuple[float, float]]]:
    """Answer prompts as they arrive.

    Returns:
        Seconds over all, and each request's time to its first token and mean time between tokens.
    """
    began = time.perf_counter()
    first, last = [0.0] * len(prompts), [0.0] * len(prompts)
    added = 0
    while added < len(prompts) or engine.has_unfinished:
        now = time.perf_counter() - began
        while added < len(prompts) and arrivals[added] <= now:
            params = SamplingParams(temperature=0.0, max_tokens=outputs[added], ignore_eos=True)
            engine.add_request(str(added), prompts[added], params)
            added += 1
        if not engine.has_unfinished:
            time.sleep(max(0.0, arrivals[added] - (time.perf_counter() - began)))
            continue
        events = engine.step()
        now = time.perf_counter() - began
        for event in events:
            index = int(event.request_id)
            first[index] = first[index] or now
            last[index] = now
    return max(last), [
        (started - at, (ended - started) / max(1, output - 1))
        for at, started, ended, output in zip(arrivals, first, last, outputs, strict=True)
    ]


def _csv_rows(lines: Any) -> Iterator[tuple[float, int, int]]:
    for row in csv.DictReader(lines):
        moment = np.datetime64(row["TIMESTAMP"].replace(" ", "T"), "us")
        at = moment.astype(np.int64) / 1e6
        yield float(at), int(row["ContextTokens"]), int(row["GeneratedTokens"])


def _json_rows(lines: Any) -> Iterator[tuple[float, int, int]]:
    for line in lines:
        row = json.loads(line)
        yield row["timestamp"] / 1000, int(row["input_length"]), int(row["output_length"])


def _round(value: float) -> float:
    return float(f"{value:.5g}")
