"""Our engine on the CPU beside llama.cpp: same weights, same prompts, in turns in one run.

llama.cpp lies in an environment of its own, built for this CPU:

    python -m venv build/llama-cpp
    build/llama-cpp/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36 numpy

with CMAKE_ARGS=-DGGML_NATIVE=ON. On a CPU with AMX name its other instruction sets one by one
instead (-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON …): this version's AMX product
ends in a segmentation fault (`ggml_backend_amx_mul_mat`), whatever the shape.

Correctness first: both must give the same perplexity of a text, within two per cent, since both
compute with the same int8 weights. Each side runs with one thread and with all; the better counts.

Threads that wait for each other lose far more to a busy machine than work alone does: run it on a
quiet one, or as `chrt -f 1 python -m tests.benchmarks.bench_llama_cpp`; the file says which.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from backends.bundled import bundled_path  # ours before torch: `backends` says how threads wait
from backends.contract import SamplingParams
from backends.engine.config import SpeculationConfig
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.kv_cache import allocate
from backends.engine.model_runner import ModelRunner
from backends.engine.options import EngineOptions
from backends.layers.attention import ForwardBatch
from backends.tokenizer import Tokenizer
from tests.benchmarks.environment import describe, write
from tests.benchmarks.llama_shapes import SHAPES, Shape, Weights

# isort: split
import torch

import kernels.decoder.native as decoder_native
import kernels.packed_linear.native as packed_linear_native
import kernels.quant_linear.native as quant_linear_native
import kernels.rms_norm.native as norm_native
from kernels import native

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build" / "llama-cpp" / "bin" / "python"
WORKER = Path(__file__).parent / "llama_cpp_worker.py"
PREFILL_TOKENS = 512
PROMPT_TOKENS = 32
OUTPUT_TOKENS = 64
STREAMS = 16
TEXT_TOKENS = 400
SETTLE_S = 0.05
"""Between turns: until threads that spin while they wait have gone to sleep."""


class LlamaCpp:
    """The other side, in a process of its own."""

    def __init__(self, model: Path, threads: int) -> None:
        self._child = subprocess.Popen(
            [str(PYTHON), str(WORKER), str(model), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # How our process lets OpenMP wait would slow theirs down.
            env={k: v for k, v in os.environ.items() if not k.startswith("OMP_")},
        )
        self.about = self._read()

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.communicate(timeout=30)

    def __call__(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Ask for one of the worker's methods."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
        self._child.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp died with exit code {self._child.wait(timeout=30)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def our_engine(folder: Path, threads: int) -> Engine:
    """An engine without prefix reuse or speculation."""
    return build_engine(
        EngineOptions(
            model=str(folder),
            max_num_seqs=STREAMS,
            threads=threads,
            enable_prefix_caching=False,
            speculation=SpeculationConfig(method="off"),
        )
    )


def prefill(engine: Engine, prompt: list[int]) -> float:
    """Seconds until the first token."""
    began = time.perf_counter()
    engine.add_request("0", prompt, _greedy(1))
    while engine.has_unfinished:
        engine.step()
    return time.perf_counter() - began


def generate(engine: Engine, prompts: Sequence[list[int]], count: int) -> float:
    """Seconds of `count` greedy tokens of each prompt, the first one's apart."""
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, _greedy(count))
    waiting = {str(index) for index in range(len(prompts))}
    while waiting:
        waiting -= {event.request_id for event in engine.step()}
    began = time.perf_counter()
    while engine.has_unfinished:
        engine.step()
    return time.perf_counter() - began


def our_logprobs(engine: Engine, tokens: list[int]) -> list[float]:
    """The log-probability of every token after the first, given those before it."""
    model = _runner(engine).model
    blocks = -(-len(tokens) // 16)
    caches = allocate(
        model.config,
        num_blocks=blocks,
        block_size=16,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    places = torch.arange(len(tokens))
    batch = ForwardBatch(
        token_ids=torch.tensor(tokens),
        positions=places,
        slot_mapping=places,
        block_tables=torch.arange(blocks, dtype=torch.int32)[None],
        query_start_lens=torch.tensor([0, len(tokens)], dtype=torch.int32),
        context_lens=torch.tensor([len(tokens)], dtype=torch.int32),
        max_query_len=len(tokens),
        max_context_len=len(tokens),
    )
    with torch.inference_mode():
        logprobs = model.logits(model.forward(batch, caches)).double().log_softmax(dim=-1)
    values: list[float] = logprobs[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
    return values


class CppClock:
    """Seconds spent in C++ while it is entered: what is left of a step is Python and torch."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._modules = (decoder_native, quant_linear_native, packed_linear_native, norm_native)

    def __enter__(self) -> "CppClock":
        for module in self._modules:
            vars(module)["function"] = self._timed
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            vars(module)["function"] = native.function

    def _timed(self, name: str) -> Any:
        called = native.function(name)

        def call(*arguments: Any) -> int:
            began = time.perf_counter()
            outcome = called(*arguments)
            self.seconds += time.perf_counter() - began
            return outcome

        return call


def framework_share(engine: Engine, prompt: list[int]) -> float:
    """The share of batch-1 decode steps that is not spent in C++: median of several answers."""
    shares = []
    for _ in range(5):
        engine.add_request("0", prompt, _greedy(OUTPUT_TOKENS))
        engine.step()
        with CppClock() as clock:
            began = time.perf_counter()
            while engine.has_unfinished:
                engine.step()
            shares.append(1 - clock.seconds / (time.perf_counter() - began))
    return statistics.median(shares)


def perplexity(logprobs: Sequence[float]) -> float:
    """e to the mean surprise."""
    return math.exp(-statistics.fmean(logprobs))


def compare(shape: Shape, folder: Path, rounds: int) -> dict[str, Any]:
    """One model: the same perplexity, then both sides' speeds, in turns."""
    weights = Weights(shape)
    weights.save_folder(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(bundled_path("small") / name, folder)
    file = folder / "model.gguf"
    weights.save_gguf(file)
    counts = sorted({1, os.cpu_count() or 1})
    speeds: dict[str, dict[str, float]] = {}
    framework: dict[str, float] = {}
    for threads in counts:
        torch.set_num_threads(threads)
        engine = our_engine(folder, threads)
        with LlamaCpp(file, threads) as theirs:
            version = theirs.about["version"]
            perplexities = check(engine, theirs)
            for name, values in race(engine, theirs, rounds).items():
                speeds.setdefault(name, {})[str(threads)] = statistics.median(values)
        share = framework_share(engine, list(range(16, 16 + PROMPT_TOKENS)))
        framework[str(threads)] = round(share, 3)
    best = {name: max(values.values()) for name, values in speeds.items()}
    return {
        "model": shape.name,
        "weights": weights.count,
        "llama_cpp": version,
        "perplexity": perplexities,
        "tokens_per_s_by_threads": {
            name: {threads: round(value, 1) for threads, value in values.items()}
            for name, values in speeds.items()
        },
        "framework_share_of_decode_step_by_threads": framework,
        "ours_over_llama_cpp": {
            what: round(best[f"headgate_{what}"] / best[f"llama_cpp_{what}"], 2)
            for what in ("prefill", "decode", "streams")
        },
    }


def check(engine: Engine, theirs: LlamaCpp) -> dict[str, float]:
    """Both must give the same perplexity of this file's text."""
    tokenizer = engine.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    text = tokenizer.encode(Path(__file__).read_text())[:TEXT_TOKENS]
    ours = perplexity(our_logprobs(engine, text))
    other = perplexity(theirs("logprobs", tokens=text)["logprobs"])
    assert abs(ours / other - 1) < 0.02, f"perplexities differ: {ours} and {other}"
    return {"headgate": round(ours, 2), "llama_cpp": round(other, 2)}


def race(engine: Engine, theirs: LlamaCpp, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each side, a round of everything after the other."""
    random = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {}

    def note(name: str, tokens: int, seconds: float) -> None:
        speeds.setdefault(name, []).append(tokens / seconds)
        time.sleep(SETTLE_S)

    for round_ in range(-1, rounds):  # The first one warms up.
        long = random.integers(16, 4000, PREFILL_TOKENS).tolist()
        prompts = random.integers(16, 4000, (STREAMS, PROMPT_TOKENS)).tolist()
        later = OUTPUT_TOKENS - 1
        if round_ == 0:
            speeds.clear()
        note("headgate_prefill", PREFILL_TOKENS, prefill(engine, long))
        note("llama_cpp_prefill", PREFILL_TOKENS, theirs("prefill", prompt=long)["seconds"])
        for what, chosen in (("decode", prompts[:1]), ("streams", prompts)):
            tokens = later * len(chosen)
            note(f"headgate_{what}", tokens, generate(engine, chosen, OUTPUT_TOKENS))
            their = theirs("generate", prompts=chosen, count=OUTPUT_TOKENS)["seconds"]
            note(f"llama_cpp_{what}", tokens, their)
    return speeds


def _runner(engine: Engine) -> ModelRunner:
    assert isinstance(engine.runner, ModelRunner)
    return engine.runner


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def main() -> int:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default=",".join(shape.name for shape in SHAPES))
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    if not PYTHON.exists():
        print(f"error: no {PYTHON.relative_to(ROOT)}; this file's head says how", file=sys.stderr)
        return 1
    results = []
    for shape in (shape for shape in SHAPES if shape.name in options.models.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            results.append(compare(shape, Path(scratch), options.rounds))
    workload = (
        f"random models, int8 (Q8_0 there): {PREFILL_TOKENS} tokens of prompt; one answer of "
        f"{OUTPUT_TOKENS}; {STREAMS} at once. Medians, in turns, through the whole engine"
    )
    figures = {
        **describe(workload),
        "real_time_priority": os.sched_getscheduler(0) == os.SCHED_FIFO,
        "llama_cpp_without": "amx",
        "results": results,
    }
    print(json.dumps(figures, indent=2))
    write(options.out, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
