"""What the engine itself costs: microseconds of Python per sequence and step, with no model.

A runner that computes nothing gives every sequence one token; what is left is scheduling, taking
in tokens, stop checks, text, and sharing the time. Correctness first: the toy model's answers
must be those it gives one by one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from backends.contract import SamplingParams
from backends.engine.config import EngineConfig, SpeculationConfig, SpeculationMethod
from backends.engine.engine import Engine
from backends.engine.runner import SampleResult, SchedulerOutput
from backends.speculation.speculator import Speculator
from tests.backends.engine.toy_engine import (
    LetterTokenizer,
    ToyRunner,
    greedy,
    plain_answer,
    run_all,
    tokens_of,
)
from tests.benchmarks.environment import describe, write

_STEPS = 200
_PROMPT_TOKENS = 100


class NoModel:
    """Gives every sequence a token at once; the tokens follow no simple pattern."""

    def __init__(self) -> None:
        self._steps = 0

    def execute(self, output: SchedulerOutput) -> Sequence[SampleResult]:
        """One token for each sequence that samples."""
        self._steps += 1
        token = 1 + (self._steps * self._steps // 7) % 22
        sampled, nothing = SampleResult((token,)), SampleResult()
        return [sampled if part.samples else nothing for part in output.sequences]


def check() -> None:
    """The engine answers as the toy model does one by one."""
    config = EngineConfig(num_blocks=64, max_model_len=128, block_size=4, max_num_seqs=8)
    engine = Engine(config, ToyRunner(config), LetterTokenizer())
    prompts = {str(i): [1 + (i * 7 + j) % 22 for j in range(3 + 9 * i)] for i in range(6)}
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, greedy(20))
    events = run_all(engine)
    for name, prompt in prompts.items():
        assert tokens_of(events[name]) == plain_answer(prompt, 20)


def measure(batch: int, method: SpeculationMethod, params: SamplingParams) -> float:
    """Microseconds per sequence and decode step, all sequences decoding."""
    config = EngineConfig.derive(
        context_tokens=2048,
        kv_bytes_per_token=6144,
        max_num_seqs=batch,
        max_num_batched_tokens=batch * _PROMPT_TOKENS,
        speculation=SpeculationConfig(method=method),
    )
    speculator = Speculator.from_config(config.speculation, now_ns=time.perf_counter_ns)
    engine = Engine(config, NoModel(), LetterTokenizer(), speculator=speculator)
    for i in range(batch):
        prompt = [1 + (i + j * j) % 22 for j in range(_PROMPT_TOKENS)]
        engine.add_request(str(i), prompt, params)
    for _ in range(10):
        engine.step()
    took = []
    for _ in range(_STEPS):
        began = time.perf_counter_ns()
        events = engine.step()
        took.append(time.perf_counter_ns() - began)
        assert len(events) == batch
    return statistics.median(took) / batch / 1000


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", default="1,8,32,64")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    check()
    plain = greedy(_STEPS * 6, ignore_eos=True)
    stops = greedy(_STEPS * 6, ignore_eos=True, stop=("~~~~", "vvvvvv"))
    results = [
        {
            "batch": batch,
            "plain_us_per_sequence_step": round(measure(batch, "off", plain), 2),
            "stop_strings_us_per_sequence_step": round(measure(batch, "off", stops), 2),
            "speculation_auto_us_per_sequence_step": round(measure(batch, "auto", plain), 2),
        }
        for batch in map(int, options.batch.split(","))
    ]
    workload = f"{_PROMPT_TOKENS} prompt tokens, {_STEPS} decode steps (median), no model"
    figures = {**describe(workload), "results": results}
    print(json.dumps(figures, indent=2))
    write(options.out, figures)


if __name__ == "__main__":
    main()
