"""What has to be served: how many requests, how long, and how soon they want an answer."""

import csv
import gzip
import json
import random
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.planner.errors import PlanError


class Arrival(Struct, frozen=True):
    """One request of a load."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Of the prompt: a prefix that another request computed."""


class Slo(Struct, frozen=True, kw_only=True):
    """The promise; None promises nothing."""

    ttft_p99_s: float | None = None
    tpot_p99_s: float | None = None

    def holds(self, ttft_p99_s: float, tpot_p99_s: float) -> bool:
        """Whether measured times keep it."""
        return (self.ttft_p99_s is None or ttft_p99_s <= self.ttft_p99_s) and (
            self.tpot_p99_s is None or tpot_p99_s <= self.tpot_p99_s
        )


class Workload(Struct, frozen=True, kw_only=True, dict=True):
    """Requests a second, and lengths to draw from."""

    requests_per_s: float
    lengths: tuple[tuple[int, int], ...]
    """(prompt, output) tokens of past or imagined requests; drawn with equal chance."""
    prefix_share: float = 0.0
    """Of prompt tokens: found in the prefix cache."""
    source: str = "assumed"
    gaps_s: tuple[float, ...] = ()
    """Recorded times between arrivals, scaled to the rate; empty: Poisson arrivals."""

    def arrivals(self, rate_per_s: float, seconds: float, seed: int = 0) -> list[Arrival]:
        """A load of that rate, drawn from the lengths; the same seed gives the same load."""
        draw = random.Random(seed)
        mean_gap_s = sum(self.gaps_s) / len(self.gaps_s) if self.gaps_s else 1.0
        found: list[Arrival] = []
        at_s = 0.0
        while True:
            if self.gaps_s:
                at_s += self.gaps_s[len(found) % len(self.gaps_s)] / mean_gap_s / rate_per_s
            else:
                at_s += draw.expovariate(rate_per_s)
            if at_s >= seconds:
                return found
            prompt, output = draw.choice(self.lengths)
            found.append(Arrival(at_s, prompt, output, int(prompt * self.prefix_share)))

    @cached_property
    def mean_prompt_tokens(self) -> float:
        return sum(prompt for prompt, _ in self.lengths) / len(self.lengths)

    @cached_property
    def mean_output_tokens(self) -> float:
        return sum(output for _, output in self.lengths) / len(self.lengths)

    @cached_property
    def long_prompt(self) -> int:
        """Tokens of a prompt that a hundredth of them exceeds."""
        return int(percentile([prompt for prompt, _ in self.lengths], 0.99))

    @cached_property
    def longest(self) -> int:
        """Tokens of all but the longest hundredth of requests: what a replica must hold."""
        return int(percentile([prompt + output for prompt, output in self.lengths], 0.99)) + 1

    def longer_than(self, tokens: int) -> float:
        """Share of the requests that have more, prompt and answer together."""
        return sum(prompt + output > tokens for prompt, output in self.lengths) / len(self.lengths)

    def scaled(self, *, rate: float = 1.0, prompt: float = 1.0, output: float = 1.0) -> "Workload":
        """The same with other numbers, for sensitivity."""
        return Workload(
            requests_per_s=self.requests_per_s * rate,
            lengths=tuple(
                (max(1, round(p * prompt)), max(1, round(o * output))) for p, o in self.lengths
            ),
            prefix_share=self.prefix_share,
            source=self.source,
            gaps_s=self.gaps_s,
        )


def fixed(requests_per_s: float, prompt_tokens: int, output_tokens: int, **more: Any) -> Workload:
    """Every request of the same length."""
    lengths = ((prompt_tokens, output_tokens),)
    return checked(Workload(requests_per_s=requests_per_s, lengths=lengths, **more))


def spread(
    requests_per_s: float, prompt_tokens: int, output_tokens: int, *, seed: int = 0, **more: Any
) -> Workload:
    """Lengths around those means as chats have them: log-normal, a long tail (sigma 0.8)."""
    if min(prompt_tokens, output_tokens) < 1:
        raise PlanError("prompt and output tokens must be at least 1")
    draw = random.Random(seed)
    drawn = [(draw.lognormvariate(0, 0.8), draw.lognormvariate(0, 0.8)) for _ in range(512)]
    sums = [sum(column) for column in zip(*drawn, strict=True)]

    def one(mean: int, place: int) -> list[int]:
        by = mean * len(drawn) / sums[place]  # so few draws have a mean of their own
        return [max(1, round(by * pair[place])) for pair in drawn]

    lengths = tuple(zip(one(prompt_tokens, 0), one(output_tokens, 1), strict=True))
    return checked(Workload(requests_per_s=requests_per_s, lengths=lengths, **more))


def checked(workload: Workload) -> Workload:
    """Raises PlanError if no such load can exist."""
    if not workload.requests_per_s > 0:
        raise PlanError(f"requests per second is {workload.requests_per_s}; give a number above 0")
    if not workload.lengths or min(min(pair) for pair in workload.lengths) < 1:
        raise PlanError("prompt and output tokens must be at least 1")
    if not 0 <= workload.prefix_share < 1:
        raise PlanError(f"prefix share is {workload.prefix_share}; allowed: 0 up to, not with, 1")
    return workload


def from_trace(path: Path, requests_per_s: float | None = None, scale: float = 1.0) -> Workload:
    """Lengths and gaps of recorded traffic.

    Args:
        path: CSV with TIMESTAMP, ContextTokens, GeneratedTokens (Azure's), or JSON Lines with
            timestamp (ms), input_length, output_length (Mooncake's); .gz too.
        requests_per_s: None: the recorded rate.
        scale: of all lengths, for models of shorter context.

    Raises:
        PlanError: the file cannot be read as either.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        lines = text.splitlines()
        rows = _json_rows(lines) if ".jsonl" in path.name else _csv_rows(lines)
    except (OSError, UnicodeDecodeError, KeyError, ValueError) as error:
        raise PlanError(f"{path}: no trace that can be read: {error!r}") from None
    if len(rows) < 2:
        raise PlanError(f"{path}: a trace needs at least two requests")
    rows.sort()
    gaps = tuple(after[0] - before[0] for before, after in pairwise(rows))
    seconds = rows[-1][0] - rows[0][0]
    rate = requests_per_s or (len(rows) / seconds if seconds > 0 else 1.0)
    lengths = tuple((max(1, round(p * scale)), max(1, round(o * scale))) for _, p, o in rows)
    return checked(Workload(requests_per_s=rate, lengths=lengths, source=path.name, gaps_s=gaps))


def _csv_rows(lines: list[str]) -> list[tuple[float, int, int]]:
    found = []
    for row in csv.DictReader(lines):
        stamp = datetime.fromisoformat(row["TIMESTAMP"][:26])
        found.append((stamp.timestamp(), int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return found


def _json_rows(lines: list[str]) -> list[tuple[float, int, int]]:
    found = []
    for line in lines:
        row = json.loads(line)
        found.append((row["timestamp"] / 1000, int(row["input_length"]), int(row["output_length"])))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie; 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
