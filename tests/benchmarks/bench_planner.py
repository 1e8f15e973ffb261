"""`headgate plan`'s engine model against real engines: calibrated on two loads, predicting others.

    python -m tests.benchmarks.bench_planner --out tests/benchmarks/results/planner.json

Engines of the bundled tiers run as processes, one compute thread each, and are asked over HTTP.
Two fixed loads on `small` calibrate the step times: so many requests a second, and so many at once.
Predicted are another fixed load, requests at random moments, and a recorded trace with lengths and
rate scaled to the machine, for `small` and for the two tiers that nothing was measured of. Every
load is run in turns with the others, several rounds; what is compared is the median round. Open
loads ask for a share of what the calibrated planner says the tier can do.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop
from msgspec import Struct

from backends.bench.load_client import Answered, Server, run_concurrent, run_paced
from backends.bench.serve import figures, paced, poisson, requests
from backends.bench.traces import TraceRequest, read_trace
from backends.engine.config import EngineConfig
from gateway.planner.shapes import shape_of
from gateway.planner.simulate import Simulated, simulate
from gateway.planner.steps import Fitted, Measured, Work, fit
from gateway.planner.workload import Arrival
from tests.backends.server_process import ServerProcess
from tests.benchmarks.environment import describe, write

TRACE = Path(__file__).parents[3] / "shared" / "traces" / "azure_llm_2023_conv.csv.gz"
TRACE_SCALE = 0.15
TIERS = ("small", "nano", "base")
SEATS = 32
CONFIG = EngineConfig(
    num_blocks=SEATS * 128,
    max_model_len=2048,
    max_num_seqs=SEATS,
    max_num_batched_tokens=2048,
    enable_prefix_caching=False,
)
OFFERED_SHARE = 0.4
"""Of the calibrated capacity: what open loads ask for."""
THROUGHPUT_BAR, TPOT_BAR, PLAN_BAR_S, SPEED_BAR = 0.20, 0.25, 2.0, 200.0
PLAN = ("plan", "8B", "--rate", "10", "--ttft-p99", "2", "--tpot-p99", "0.05", "--json")


class Case(Struct, frozen=True, kw_only=True):
    """One load on one tier."""

    name: str
    tier: str
    requests: tuple[TraceRequest, ...]
    concurrency: int = 0
    """So many of the requests at any time; 0: each at its moment."""


def fixed(tier: str, concurrency: int, prompt: int, output: int) -> Case:
    """So many requests at any time, of lengths around those."""
    return Case(
        name=f"{concurrency} at once, about {prompt} + {output}",
        tier=tier,
        requests=tuple(requests(prompt, output)),
        concurrency=concurrency,
    )


def even(tier: str, rate: float, seconds: float, prompt: int, output: int) -> Case:
    """So many requests a second, one like the other apart from their lengths."""
    drawn = requests(prompt, output)
    load = [
        TraceRequest(at_s=number / rate, prompt_tokens=one.prompt_tokens,
                     output_tokens=one.output_tokens)
        for number in range(round(rate * seconds))
        for one in (drawn[number % len(drawn)],)
    ]  # fmt: skip
    name = f"{rate:g}/s evenly, about {prompt} + {output}"
    return Case(name=name, tier=tier, requests=tuple(load))


def calibration(seconds: float) -> tuple[Case, Case]:
    """A light load, after whose pauses caches are cold, and a heavy one that never pauses."""
    return even("small", 25.0, seconds, 100, 80), fixed("small", 8, 300, 100)


@contextmanager
def engines(tiers: Sequence[str]) -> Iterator[dict[str, Server]]:
    """A process per tier; idle ones use nothing."""
    flags = ("--threads", "1", "--max-num-seqs", str(SEATS), "--speculation-method", "off")
    started: dict[str, ServerProcess] = {}
    try:
        for tier in tiers:
            named = ("--model", f"bundled:{tier}", "--served-model-name", tier)
            started[tier] = ServerProcess(
                "backends.server", *named, *flags, "--no-enable-prefix-caching"
            )
        for process in started.values():
            process.wait_ready(120)
        yield {
            tier: Server(base_url=f"{process.url}/v1", model=tier)
            for tier, process in started.items()
        }
    finally:
        for process in started.values():
            process.stop()


def measure(server: Server, case: Case, seconds: float, seed: int) -> list[Answered]:
    """Run a case once."""

    async def go() -> list[Answered]:
        warm = [TraceRequest(at_s=0.0, prompt_tokens=16, output_tokens=8)]
        await run_concurrent(server, warm, 2, 0.1)
        if case.concurrency:
            return await run_concurrent(server, case.requests, case.concurrency, seconds, seed=seed)
        return await run_paced(server, case.requests, seed=seed)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(go())


def predict(case: Case, model: Fitted, seconds: float) -> Simulated:
    """The same load on the virtual clock."""
    load = [Arrival(one.at_s, one.prompt_tokens, one.output_tokens) for one in case.requests]
    if case.concurrency:
        return simulate(load, model, CONFIG, concurrency=case.concurrency, limit_s=seconds)
    return simulate(load, model, CONFIG)


def calibrate(rows: Sequence[dict[str, Any]]) -> dict[str, Fitted]:
    """A step model for every tier out of results of `small`."""
    small = shape_of("bundled:small")
    measured = [
        Measured(shape=small, precision="int8", work=Work(*row[:-1]), seconds=row[-1])
        for result in rows
        for row in result["work"]["rows"]
    ]
    return {
        tier: fit(measured, shape_of(f"bundled:{tier}"), "int8", "two fixed loads on small")
        for tier in TIERS
    }


def cases(models: dict[str, Fitted], seconds: float) -> list[Case]:
    """What is predicted; open loads at a share of what each tier can do."""
    found = [fixed("small", 5, 200, 80), fixed("nano", 4, 128, 120), fixed("base", 4, 150, 80)]
    recorded = read_trace(TRACE, 4000)
    drawn = requests(150, 70)
    for tier in TIERS:
        rate = OFFERED_SHARE * _capacity(models[tier], drawn)
        load = poisson(drawn, rate, seconds)
        name = f"Poisson, {rate:.3g}/s of about 150 + 70"
        found.append(Case(name=name, tier=tier, requests=tuple(load)))
        rate = OFFERED_SHARE * _capacity(models[tier], paced(recorded, 1.0, TRACE_SCALE))
        part = paced(recorded[: max(2, round(rate * seconds))], rate, TRACE_SCALE)
        name = f"Azure's trace, lengths × {TRACE_SCALE}, {rate:.3g}/s"
        found.append(Case(name=name, tier=tier, requests=tuple(part)))
    return found


def _capacity(model: Fitted, requests: Sequence[TraceRequest]) -> float:
    """Requests/s with a full house."""
    load = [Arrival(0.0, one.prompt_tokens, one.output_tokens) for one in requests]
    return simulate(load, model, CONFIG, concurrency=SEATS, limit_s=5.0).requests_per_s


def compared(
    case: Case, results: Sequence[dict[str, Any]], model: Fitted, seconds: float
) -> dict[str, Any]:
    """Measured beside predicted, with relative errors and the simulator's speed."""
    took = []
    for _ in range(3):
        began = time.process_time()
        found = predict(case, model, seconds)
        took.append(time.process_time() - began)
    names = ("output_tokens_per_s", "tpot_p50_s", "tpot_p99_s", "ttft_p50_s", "ttft_p99_s")
    measured = {name: statistics.median(result[name] for result in results) for name in names}
    predicted = {name: getattr(found, name) for name in names}
    errors = {name: round(predicted[name] / measured[name] - 1, 4) for name in names}
    return {
        "case": case.name,
        "tier": case.tier,
        "requests": sum(result["requests"] for result in results),
        "failed": sum(result["errors"] for result in results),
        "measured": {name: float(f"{value:.5g}") for name, value in measured.items()},
        "predicted": {name: float(f"{value:.5g}") for name, value in predicted.items()},
        "errors": errors,
        "rounds_output_tokens_per_s": [result["output_tokens_per_s"] for result in results],
        "rounds_tpot_p50_s": [result["tpot_p50_s"] for result in results],
        "simulated_over_real_time": round(found.seconds / min(took), 1),
        "within_bars": abs(errors["output_tokens_per_s"]) <= THROUGHPUT_BAR
        and abs(errors["tpot_p50_s"]) <= TPOT_BAR,
    }


def plan_seconds() -> list[float]:
    """Wall time of one `headgate plan`, process start and all, a few times."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        command = [sys.executable, "-P", "-m", "gateway", *PLAN]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(round(time.perf_counter() - began, 3))
    return took


def main() -> int:
    """Measure, calibrate, predict, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="each load, each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    seconds: float = options.seconds
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with engines(TIERS) as servers:

        def run(case: Case, turn: int) -> dict[str, Any]:
            result = figures(measure(servers[case.tier], case, seconds, turn))
            results.setdefault((case.tier, case.name), []).append(result)
            return result

        first = calibration(seconds)
        predicted = cases(calibrate([run(case, 0) for case in first]), seconds)
        for turn in range(1, options.rounds + 1):
            for case in (*first, *predicted):
                run(case, turn)
    models = calibrate([result for case in first for result in results[case.tier, case.name]])
    rows = [
        compared(case, results[case.tier, case.name], models[case.tier], seconds)
        for case in (*first, *predicted)
    ]
    answer = {
        **describe(
            f"{options.rounds} rounds of {seconds:g} s a load, in turns; 1 thread an engine"
        ),
        "calibrated_on": [f"{case.tier}: {case.name}" for case in first],
        "fit_error_median": round(models["small"].error, 4),
        "costs_us": {
            tier: {name: round(value * 1e6, 4) for name, value in model.costs._asdict().items()}
            for tier, model in models.items()
        },
        "bars": {"throughput": THROUGHPUT_BAR, "tpot_p50": TPOT_BAR},
        "cases": rows,
        "worst_throughput_error": _worst(rows[len(first) :], "output_tokens_per_s"),
        "worst_tpot_p50_error": _worst(rows[len(first) :], "tpot_p50_s"),
        "slowest_simulation_over_real_time": min(row["simulated_over_real_time"] for row in rows),
        "one_plan_s": plan_seconds(),
    }
    for row in rows:
        errors = row["errors"]
        print(
            f"{row['tier']:6} {row['case']:44} tokens/s {errors['output_tokens_per_s']:+7.1%} "
            f"TPOT p50 {errors['tpot_p50_s']:+7.1%} TTFT p50 {errors['ttft_p50_s']:+7.1%} "
            f"× {row['simulated_over_real_time']:<6g} {'' if row['within_bars'] else 'MISSED'}"
        )
    print(f"one plan: {answer['one_plan_s']} s")
    write(options.out, answer)
    return 0


def _worst(rows: Sequence[dict[str, Any]], name: str) -> float:
    """The largest error of what was predicted, either way."""
    errors: list[float] = [row["errors"][name] for row in rows]
    return max(errors, key=abs)


if __name__ == "__main__":
    sys.exit(main())
