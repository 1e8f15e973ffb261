"""Continuous batching on `small`: against one by one, transformers, and static batching.

Correctness first: every way of running must give the same greedy tokens, and transformers' too.
Then figures, each the median of interleaved rounds, so that a busy machine slows all alike.

Static batching here is the usual kind: the next batch starts when the longest answer of this one
is done, and finished rows are computed along until then. `shrinking` lets them leave instead.
"""

import argparse
import csv
import gzip
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends.bundled import bundled_path  # ours before torch: `backends` says how threads wait
from backends.bundled.export import export_model
from backends.contract import SamplingParams
from backends.engine.config import SpeculationConfig
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.options import EngineOptions
from tests.benchmarks.environment import describe, write

# isort: split
import torch

Prompt = list[int]
Answers = list[list[int]]
TRACE = Path(__file__).parents[3] / "shared" / "traces" / "azure_llm_2023_conv.csv.gz"
CONCURRENT = 32
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
SEATS = 32
STATIC_REQUESTS = 256
STATIC_PROMPT_TOKENS = 16
SCALE = 8
"""The trace's answer lengths are divided by this, for a small context and a short run."""


def greedy(tokens: int) -> SamplingParams:
    """Exactly so many tokens, the likeliest each time."""
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def answer(engine: Engine, prompts: Sequence[Prompt], lengths: Sequence[int]) -> Answers:
    """Answer prompts together."""
    answers: Answers = [[] for _ in prompts]
    for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        engine.add_request(str(index), prompt, greedy(length))
    while engine.has_unfinished:
        for event in engine.step():
            answers[int(event.request_id)] += event.token_ids
    return answers


def one_by_one(engine: Engine, prompts: Sequence[Prompt], lengths: Sequence[int]) -> Answers:
    """Answer prompts one after another."""
    pairs = zip(prompts, lengths, strict=True)
    return [answer(engine, [prompt], [length])[0] for prompt, length in pairs]


def static(
    engine: Engine, prompts: Sequence[Prompt], lengths: Sequence[int], *, padded: bool
) -> Answers:
    """Answer prompts batch by batch; `padded` computes every row as far as the longest."""
    answers: Answers = []
    for start in range(0, len(prompts), SEATS):
        wanted = lengths[start : start + SEATS]
        computed = [max(wanted)] * len(wanted) if padded else wanted
        batch = answer(engine, prompts[start : start + SEATS], computed)
        answers += [row[:length] for row, length in zip(batch, wanted, strict=True)]
    return answers


def transformers_answer(model: Any, prompt: Prompt, tokens: int) -> list[int]:
    """Answer one prompt with transformers."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


def timed(work: Callable[[], Answers], expected: Answers) -> float:
    """Tokens per second of one run, which must give the expected answers."""
    began = time.perf_counter()
    answers = work()
    took = time.perf_counter() - began
    assert answers == expected, "answers changed between runs"
    return sum(map(len, answers)) / took


def engine_for(model: str, *, seats: int, threads: int | None, quantization: Any) -> Engine:
    """An engine without prefix reuse or speculation: only batching is measured."""
    return build_engine(
        EngineOptions(
            model=model,
            quantization=quantization,
            max_num_seqs=seats,
            threads=threads,
            enable_prefix_caching=False,
            speculation=SpeculationConfig(method="off"),
        )
    )


def trace_lengths(count: int) -> list[int]:
    """Answer lengths drawn from the trace, scaled down."""
    with gzip.open(TRACE, "rt") as file:
        lengths = [int(row["GeneratedTokens"]) for row in csv.DictReader(file)]
    return [max(1, length // SCALE) for length in random.Random(0).sample(lengths, count)]


def random_prompts(lengths: Sequence[int], seed: int) -> list[Prompt]:
    """Prompts of random tokens, the first few (special) ones left out."""
    generator = np.random.default_rng(seed)
    return [generator.integers(16, 4000, length).tolist() for length in lengths]


def check_and_compare(
    engine: Engine, models: dict[str, Any], plain: Engine, rounds: int
) -> dict[str, Any]:
    """Concurrent against one by one against transformers."""
    prompts = random_prompts([PROMPT_TOKENS] * CONCURRENT, seed=1)
    lengths = [OUTPUT_TOKENS] * CONCURRENT
    expected = one_by_one(engine, prompts, lengths)
    assert answer(engine, prompts, lengths) == expected, "batched differs from one by one"
    few = 4
    exact = one_by_one(plain, prompts[:few], lengths[:few])
    theirs = [transformers_answer(models["float32"], p, OUTPUT_TOKENS) for p in prompts[:few]]
    assert exact == theirs, "we differ from transformers on the same fp32 weights"
    runs: dict[str, list[float]] = {
        name: [] for name in ("concurrent", "one_by_one", *(f"transformers_{m}" for m in models))
    }
    for _ in range(rounds):
        runs["concurrent"].append(timed(lambda: answer(engine, prompts, lengths), expected))
        runs["one_by_one"].append(
            timed(lambda: one_by_one(engine, prompts[:few], lengths[:few]), expected[:few])
        )
        for name, model in models.items():
            own = [transformers_answer(model, prompts[0], OUTPUT_TOKENS)]
            runs[f"transformers_{name}"].append(
                timed(lambda m=model: [transformers_answer(m, prompts[0], OUTPUT_TOKENS)], own)  # type: ignore[misc]
            )
    speeds = {name: statistics.median(values) for name, values in runs.items()}
    best = max(speeds[f"transformers_{name}"] for name in models)
    ratios = [a / b for a, b in zip(runs["concurrent"], runs["one_by_one"], strict=True)]
    return {
        "requests": CONCURRENT,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        **{f"{name}_tokens_per_s": round(value, 1) for name, value in speeds.items()},
        "concurrent_over_one_by_one": round(statistics.median(ratios), 2),
        "batch_1_over_transformers": round(speeds["one_by_one"] / best, 2),
    }


def compare_static(engine: Engine, rounds: int) -> dict[str, Any]:
    """Continuous against static batching on the trace's lengths, with as many seats."""
    lengths = trace_lengths(STATIC_REQUESTS)
    prompts = random_prompts([STATIC_PROMPT_TOKENS] * len(lengths), seed=2)
    expected = answer(engine, prompts, lengths)
    runs: dict[str, list[float]] = {"continuous": [], "static": [], "static_shrinking": []}
    for _ in range(rounds):
        runs["continuous"].append(timed(lambda: answer(engine, prompts, lengths), expected))
        runs["static"].append(
            timed(lambda: static(engine, prompts, lengths, padded=True), expected)
        )
        runs["static_shrinking"].append(
            timed(lambda: static(engine, prompts, lengths, padded=False), expected)
        )
    batches = [lengths[i : i + SEATS] for i in range(0, len(lengths), SEATS)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    ratios = [a / b for a, b in zip(runs["continuous"], runs["static"], strict=True)]
    return {
        "requests": STATIC_REQUESTS,
        "seats": SEATS,
        "prompt_tokens": STATIC_PROMPT_TOKENS,
        "output_tokens_mean": round(statistics.mean(lengths), 1),
        "output_tokens_max": max(lengths),
        **{f"{name}_tokens_per_s": round(statistics.median(v), 1) for name, v in runs.items()},
        "continuous_over_static": round(statistics.median(ratios), 2),
        "ideal_ratio": round(padded / sum(lengths), 2),
    }


def main() -> int:
    """Check, measure, print."""
    from transformers import LlamaForCausalLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", help="a bundled model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of our engine; transformers gets the same")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    model = f"bundled:{options.model}"
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain"
        export_model(bundled_path(options.model), None, plain, dtype="float32")
        models = {
            name: LlamaForCausalLM.from_pretrained(plain, dtype=getattr(torch, name)).eval()
            for name in ("float32", "bfloat16")
        }
        exact = engine_for(str(plain), seats=1, threads=options.threads, quantization=None)
    many = engine_for(model, seats=CONCURRENT, threads=options.threads, quantization="int8")
    few = engine_for(model, seats=SEATS, threads=options.threads, quantization="int8")
    figures = {
        **describe(f"bundled:{options.model}, int8, greedy, no prefix reuse, no speculation"),
        "threads": torch.get_num_threads(),
        "concurrent": check_and_compare(many, models, exact, options.rounds),
        "static": compare_static(few, options.rounds),
    }
    print(json.dumps(figures, indent=2))
    write(options.out, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
