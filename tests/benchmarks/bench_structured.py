"""Structured outputs on `small`: what keeping to a schema costs 16 streams, and their neighbours.

Correctness first: every constrained answer is a document of the schema. Then CPU time, in rounds
by turns, so that a busy machine slows all alike: 16 constrained streams, the same prompts and as
many tokens without a form, and 15 of those beside a single constrained one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema

from backends.bundled import bundled_path  # ours before torch: `backends` says how threads wait
from backends.contract import SamplingParams, StructuredOutputsParams
from backends.engine.config import SpeculationConfig
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.options import EngineOptions
from backends.sampling.grammar import GrammarCompiler
from backends.tokenizer import Tokenizer
from tests.benchmarks.environment import describe, write

STREAMS = 16
ROUNDS = 5
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"type": "string", "minLength": 1, "maxLength": 20},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "vip"]}, "maxItems": 3},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3}
FORM = StructuredOutputsParams(json=SCHEMA)
_WORDS = "Anna Berlin Carl Dublin Eva Florence Georg Havana Ida Jakarta Karl Lima".split()


class Bench:
    """An engine and the prompts that it answers."""

    def __init__(self) -> None:
        self.engine: Engine = build_engine(
            EngineOptions(
                model=str(bundled_path("small")),
                threads=1,
                max_num_seqs=STREAMS,
                speculation=SpeculationConfig(method="off"),
            )
        )
        assert isinstance(self.engine.tokenizer, Tokenizer)
        self.tokenizer = self.engine.tokenizer
        self.grammar = GrammarCompiler(self.tokenizer).compile(FORM)
        asked = "List three people with name, age and city as JSON. One is {} from {}."
        self.prompts = [
            self.tokenizer.encode_chat(
                [{"role": "user", "content": asked.format(_WORDS[i % 12], _WORDS[-i % 12])}]
            )
            for i in range(STREAMS)
        ]

    def run(self, lengths: Sequence[int | None], temperature: float) -> tuple[float, list[Any]]:
        """Answer all prompts together.

        Args:
            lengths: tokens of each answer; None: one that keeps to the form, however long.

        Returns:
            CPU microseconds per token, and each answer's tokens.
        """
        answers: list[list[int]] = [[] for _ in self.prompts]
        began = time.process_time()
        for index, (prompt, length) in enumerate(zip(self.prompts, lengths, strict=True)):
            free = length is not None
            params = SamplingParams(
                temperature=temperature,
                seed=index,
                max_tokens=length if free else 400,
                ignore_eos=free,
                structured_outputs=None if free else FORM,
            )
            grammar = None if free else self.grammar
            self.engine.add_request(str(index), prompt, params, grammar=grammar)
        while self.engine.has_unfinished:
            for event in self.engine.step():
                answers[int(event.request_id)] += event.token_ids
        tokens = sum(map(len, answers))
        return 1e6 * (time.process_time() - began) / tokens, answers


def compare(bench: Bench, temperature: float) -> dict[str, Any]:
    """Check the answers, then the median of interleaved rounds."""
    _, answers = bench.run([None] * STREAMS, temperature)
    for answer in answers:
        jsonschema.validate(json.loads(bench.tokenizer.decode(answer)), SCHEMA)
    lengths = [len(answer) for answer in answers]
    ways: dict[str, list[int | None]] = {
        "constrained": [None] * STREAMS,
        "free": list(lengths),
        "free_beside_one_constrained": [None, *lengths[1:]],
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, asked in ways.items():
            took[way].append(bench.run(asked, temperature)[0])
    medians = {way: statistics.median(values) for way, values in took.items()}
    return {
        "temperature": temperature,
        "tokens": sum(lengths),
        **{f"{way}_cpu_us_per_token": round(value, 1) for way, value in medians.items()},
        "constrained_over_free": round(medians["constrained"] / medians["free"], 3),
        "neighbours_over_free": round(medians["free_beside_one_constrained"] / medians["free"], 3),
    }


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    bench = Bench()
    workload = (
        f"{STREAMS} streams together on small, a list of three objects each; CPU time of one "
        f"thread, median of {ROUNDS} rounds by turns; the machine was not quiet"
    )
    results = [compare(bench, temperature) for temperature in (0.0, 1.0)]
    figures = {**describe(workload), "results": results}
    print(json.dumps(figures, indent=2))
    write(options.out, figures)


if __name__ == "__main__":
    main()
