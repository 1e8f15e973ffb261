"""Is what requests are charged what they cause? A trace, and the same trace without one class.

An engine serves a trace of three classes (long prompts, long answers, short ones) on a clock that
counts its own CPU time, so that neighbours on the machine matter little; when nothing is left to
do, the clock jumps to the next arrival. Then each class is left out in turn: how much less the
engine worked is what the class caused, and stands beside what it was charged. Three regimes: a
backlog (the batch is always full), a light load (requests are mostly alone), and one between, where
requests share steps that the others would need anyway: what all classes cause one by one is then
less than what was worked, and no way to share it all can agree with each. And a fourth on an engine
with a prefix cache (`--only cached`), where the short ones give way to a class that asks about
three long texts; its prompts are new to the cache in every run.

Beside that: what doubling an answer does to its decode charge, on an engine of each bundled tier
that serves nothing else, and what a request costs alone and in a full batch. Before any of it: the
charges of a run sum to its busy time, to the nanosecond.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from backends.contract import EngineUsage, SamplingParams
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.options import EngineOptions
from tests.benchmarks.environment import describe, write

_NS = 1_000_000_000
_TURNS = 15
_CAUSAL_TURNS = 5
_CLASSES = {
    # prompt tokens, answer tokens, requests per second of the engine's own time at load 1
    "long prefill": ((400, 900), (4, 8), 1.0),
    "long decode": ((10, 40), (120, 240), 1.0),
    "short": ((10, 60), (8, 24), 4.0),
}
_WITH_CACHE = {kind: _CLASSES[kind] for kind in ("long prefill", "long decode")} | {
    "cached": ((10, 60), (20, 60), 3.0),
}
Class = tuple[tuple[int, int], tuple[int, int], float]
_TIERS = ("bundled:nano", "bundled:small", "bundled:base")
_SHARED_TOKENS = 500
_SHARED_TEXTS = 3


class Arrival(Struct, frozen=True):
    """One request of the trace."""

    at_ns: int
    name: str
    kind: str
    prompt: list[int]
    answer_tokens: int


class VirtualClock:
    """This process's CPU time, plus jumps over what would have been waiting."""

    def __init__(self) -> None:
        self._jumped_ns = -time.process_time_ns()

    def now_ns(self) -> int:
        return time.process_time_ns() + self._jumped_ns

    def jump_to(self, at_ns: int) -> None:
        self._jumped_ns += max(0, at_ns - self.now_ns())


def trace(
    seconds: float,
    load: float,
    vocab: int,
    classes: Mapping[str, Class] = _CLASSES,
    seed: int = 5,
) -> list[Arrival]:
    """Poisson arrivals of every class, each from its own generator: leaving one out moves none."""
    arrivals: list[Arrival] = []
    for kind, (prompts, answers, rate) in classes.items():
        rng = random.Random(f"{seed} {kind}")
        at_s = rng.expovariate(rate * load)
        while at_s < seconds:
            prompt = _tokens(rng, rng.randint(*prompts), vocab)
            if kind == "cached":
                text = random.Random(rng.randrange(_SHARED_TEXTS))
                prompt = _tokens(text, _SHARED_TOKENS, vocab) + prompt
            name = f"{kind} {len(arrivals)}"
            arrivals.append(Arrival(round(at_s * _NS), name, kind, prompt, rng.randint(*answers)))
            at_s += rng.expovariate(rate * load)
    return sorted(arrivals, key=lambda one: one.at_ns)


def _tokens(rng: random.Random, count: int, vocab: int) -> list[int]:
    return [rng.randrange(10, vocab - 10) for _ in range(count)]


def unknown(arrivals: Sequence[Arrival], run: int) -> list[Arrival]:
    """The same with another beginning: no cache has it, but for what they share."""
    return [msgspec.structs.replace(one, prompt=[10 + run, *one.prompt]) for one in arrivals]


class Run(Struct):
    """What serving a trace took."""

    busy_ns: int
    usage: dict[str, EngineUsage]
    mean_batch: float


def serve(engine: Engine, clock: VirtualClock, arrivals: Sequence[Arrival]) -> Run:
    """Serve a trace to its end."""
    began_ns, before = clock.now_ns(), engine.clock().busy_ns
    waiting, usage, sizes = list(reversed(arrivals)), {}, []
    while waiting or engine.has_unfinished:
        if not engine.has_unfinished:
            clock.jump_to(began_ns + waiting[-1].at_ns)
        while waiting and began_ns + waiting[-1].at_ns <= clock.now_ns():
            one = waiting.pop()
            params = SamplingParams(temperature=0.0, max_tokens=one.answer_tokens, ignore_eos=True)
            engine.add_request(one.name, one.prompt, params)
        for event in engine.step():
            if event.usage is not None and event.usage.headgate is not None:
                usage[event.request_id] = event.usage.headgate
        sizes.append(engine.stats().running)
    busy_ns = engine.clock().busy_ns - before
    assert sum(one.machine_ns for one in usage.values()) == busy_ns, "charges are busy time"
    return Run(busy_ns, usage, statistics.mean(sizes))


def charged_ns(run: Run, arrivals: Iterable[Arrival], kind: str) -> int:
    """What the requests of a class were charged."""
    return sum(run.usage[one.name].machine_ns for one in arrivals if one.kind == kind)


def causality(
    engine: Engine, clock: VirtualClock, regime: str, arrivals: list[Arrival]
) -> list[dict[str, Any]]:
    """Each class's charge in the whole trace, and how much less was worked without it.

    A difference of two runs is as uncertain as both together, so it is measured again and again:
    the trace, one class less, the trace again, in turns; medians count.
    """
    runs = itertools.count()

    def serve_new(some: Sequence[Arrival]) -> Run:
        return serve(engine, clock, unknown(some, next(runs)))

    serve_new(arrivals)
    rows = []
    for kind in sorted({one.kind for one in arrivals}):
        rest = [one for one in arrivals if one.kind != kind]
        charged, caused, busy = [], [], []
        whole = serve_new(arrivals)
        for _ in range(_CAUSAL_TURNS):
            without = serve_new(rest)
            again = serve_new(arrivals)  # the machine's mood is in both
            busy.append((whole.busy_ns + again.busy_ns) / 2)
            caused.append(busy[-1] - without.busy_ns)
            both = charged_ns(whole, arrivals, kind) + charged_ns(again, arrivals, kind)
            charged.append(both / 2)
            whole = again
        rows.append(
            {
                "regime": regime,
                "left_out": kind,
                "requests": len(arrivals) - len(rest),
                "charged_s": round(statistics.median(charged) / _NS, 3),
                "caused_s": round(statistics.median(caused) / _NS, 3),
                "charged_over_caused": round(
                    statistics.median(charged) / statistics.median(caused), 3
                ),
                "charged_over_caused_by_turn": [
                    round(one / other, 3) for one, other in zip(charged, caused, strict=True)
                ],
                "busy_s": round(statistics.median(busy) / _NS, 3),
                "mean_batch": round(whole.mean_batch, 2),
            }
        )
    return rows


def _one(name: str, prompt_tokens: int, answer_tokens: int, vocab: int) -> Arrival:
    rng = random.Random(name)
    prompt = [rng.randrange(10, vocab - 10) for _ in range(prompt_tokens)]
    return Arrival(0, name, "one", prompt, answer_tokens)


def doubling(model: str, clock: VirtualClock) -> list[dict[str, Any]]:
    """The decode charge of an answer and of one twice as long, alone and among seven others."""
    engine, vocab = _engine(model, clock, caches=False)
    rows = []
    for prompt, answer in ((32, 64), (128, 128), (256, 128)):
        for others in (0, 7):
            ratios = []
            for turn in range(_TURNS):  # both lengths in every turn: the machine's mood is in both
                once, twice = (
                    _charge_among(engine, clock, vocab, f"{turn} {tokens}", prompt, tokens, others)
                    for tokens in (answer, 2 * answer)
                )
                ratios.append(twice / once)
            rows.append(
                {
                    "model": model,
                    "prompt_tokens": prompt,
                    "answer_tokens": answer,
                    "others": others,
                    "decode_ratio_of_twice": round(statistics.median(ratios), 3),
                }
            )
    return rows


def _charge_among(
    engine: Engine,
    clock: VirtualClock,
    vocab: int,
    name: str,
    prompt_tokens: int,
    answer_tokens: int,
    others: int,
) -> int:
    """The decode charge of one request, with others that outlast it."""
    batch = [_one(name, prompt_tokens, answer_tokens, vocab)]
    batch += [_one(f"{name} {i}", prompt_tokens, 256, vocab) for i in range(others)]
    return serve(engine, clock, batch).usage[name].decode_ns


def batching(engine: Engine, clock: VirtualClock, vocab: int) -> list[dict[str, Any]]:
    """What one request is charged, by how many like it run beside it."""
    rows = []
    for size in (1, 4, 8):
        charges = []
        for turn in range(_TURNS):
            batch = [_one(f"b{turn} {i}", 64, 64, vocab) for i in range(size)]
            found = serve(engine, clock, batch).usage
            charges.append(statistics.mean(one.machine_ns for one in found.values()))
        rows.append({"batch": size, "charged_ms": round(statistics.median(charges) / 1e6, 3)})
    return rows


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled:small")
    parser.add_argument("--only", choices=["cached"], help="The regime with a prefix cache.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    clock = VirtualClock()
    figures = describe(
        "classes of unequal mix on the engine's own CPU time; one thread, at most 8 sequences; no "
        "speculation, and no prefix cache but in the regime that is called so"
    ) | {"model": arguments.model}
    if arguments.only is None:
        figures |= _uncached(arguments.model, clock)
    causes = figures.setdefault("causality", [])
    causes += _cached(arguments.model, clock)
    print(json.dumps(figures, indent=2))
    write(arguments.out, figures)


def _engine(model: str, clock: VirtualClock, *, caches: bool) -> tuple[Engine, int]:
    options = EngineOptions(model=model, threads=1, max_num_seqs=8, enable_prefix_caching=caches)
    built = build_engine(options)
    engine = Engine(built.config, built.runner, built.tokenizer, now_ns=clock.now_ns)
    return engine, built.tokenizer.vocab_size


def _cached(model: str, clock: VirtualClock) -> list[dict[str, Any]]:
    engine, vocab = _engine(model, clock, caches=True)
    arrivals = trace(2.0, 4.0, vocab, _WITH_CACHE)
    return causality(engine, clock, "prefix cache", arrivals)


def _uncached(model: str, clock: VirtualClock) -> dict[str, Any]:
    engine, vocab = _engine(model, clock, caches=False)
    backlog = [msgspec.structs.replace(one, at_ns=0) for one in trace(4.0, 3.0, vocab)]
    random.Random(7).shuffle(backlog)
    regimes = {
        "backlog": backlog,
        "light load": trace(30.0, 0.3, vocab),
        "half busy": trace(6.0, 3.0, vocab),
    }
    return {
        "causality": [
            row
            for regime, arrivals in regimes.items()
            for row in causality(engine, clock, regime, arrivals)
        ],
        "doubling": [row for tier in _TIERS for row in doubling(tier, clock)],
        "batching": batching(engine, clock, vocab),
        "step_costs_us": {
            name: round(getattr(engine.step_costs(), name) / 1e3, 4)
            for name in engine.step_costs().__struct_fields__
        },
    }


if __name__ == "__main__":
    main()
