"""The bundled family: what its tiers cost, and the room that routing between them can win.

Correctness first: the committed outcomes must be those of the committed tables. Then processor
seconds per token with 16 requests under way, one thread, the tiers in turns: on shared cores wall
time says little; the model's own part of them beside, since what a step costs around the model
brings small tiers nearer to large ones. From these and the committed answers' tokens follow cost
and quality of every single tier, of random mixtures of neighbours, and of the oracle: for each
question the cheapest tier that passes, the cheapest of all where none does.
"""

import argparse
import itertools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from backends.bundled import BUNDLED_MODELS, bundled_path
from backends.contract import SamplingParams
from backends.engine.config import SpeculationConfig
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.model_runner import ModelRunner
from backends.engine.options import EngineOptions
from backends.evaluation.candidate import CONCURRENT
from backends.evaluation.figures import Evaluation, rates_by
from backends.evaluation.outcomes import Outcome, read_outcomes
from tests.benchmarks.environment import describe, write

PROMPT_TOKENS = 32
OUTPUT_TOKENS = 32
ROUNDS = 21
_FIGURES = ("prompt_token_s", "output_token_s", "output_token_in_model_s")
Costs = Mapping[str, Mapping[str, float]]


def check(rows: Sequence[Outcome]) -> None:
    """The outcomes give the tables that stand in the models' folders."""
    for name in BUNDLED_MODELS:
        file = bundled_path(name) / "evaluation.json"
        table = msgspec.json.decode(file.read_bytes(), type=Evaluation).by_task
        passed = (row.scores[name] == 1.0 for row in rows)
        assert rates_by((row.task for row in rows), passed) == table, name


def engine_for(name: str) -> Engine:
    """One tier as it is served, without prefix reuse or speculation, on one thread."""
    return build_engine(
        EngineOptions(
            model=f"bundled:{name}",
            max_num_seqs=CONCURRENT,
            threads=1,
            enable_prefix_caching=False,
            speculation=SpeculationConfig(method="off"),
        )
    )


def watch_model(engine: Engine) -> list[float]:
    """The processor seconds that the model itself takes in each step from now on."""
    runner = engine.runner
    assert isinstance(runner, ModelRunner), "the tiers decode on the CPU"
    likeliest, spent = runner.model.likeliest, list[float]()

    def timed(*args: Any) -> list[int]:
        began = time.process_time()
        tokens = likeliest(*args)
        spent.append(time.process_time() - began)
        return tokens

    runner.model.likeliest = timed  # type: ignore[assignment,method-assign]
    return spent


def one_round(engine: Engine, spent: list[float]) -> tuple[float, float, float]:
    """Processor seconds per prompt token, per token decoded, and of the latter in the model."""
    generator = np.random.default_rng(0)
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    for number in range(CONCURRENT):
        prompt = generator.integers(16, 4000, PROMPT_TOKENS).tolist()
        engine.add_request(str(number), prompt, params)
    began = time.process_time()
    waiting = set(map(str, range(CONCURRENT)))
    written = 0
    while waiting:
        waiting -= {event.request_id for event in engine.step()}
    prefilled = time.process_time()
    spent.clear()
    while engine.has_unfinished:
        written += sum(len(event.token_ids) for event in engine.step())
    decoded = time.process_time()
    return (
        (prefilled - began) / (CONCURRENT * PROMPT_TOKENS),
        (decoded - prefilled) / written,
        sum(spent) / written,
    )


def measure_tiers(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds per token of every tier: the median of rounds in turns."""
    engines = {name: engine_for(name) for name in BUNDLED_MODELS}
    spent = {name: watch_model(engine) for name, engine in engines.items()}
    for name, engine in engines.items():
        one_round(engine, spent[name])
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            found[name].append(one_round(engine, spent[name]))
    return {
        name: {
            figure: statistics.median(values)
            for figure, values in zip(_FIGURES, zip(*rows, strict=True), strict=True)
        }
        for name, rows in found.items()
    }


def neighbours(costs: Costs) -> list[dict[str, Any]]:
    """How far neighbouring tiers are apart in seconds per token, prompt and output alike."""
    return [
        {
            "tiers": [low, high],
            **{
                f"{figure.removesuffix('_s')}_ratio": round(
                    costs[high][figure] / costs[low][figure], 2
                )
                for figure in _FIGURES
            },
        }
        for low, high in itertools.pairwise(costs)
    ]


def cost_of(row: Outcome, name: str, costs: Costs) -> float:
    """Machine-seconds of one answer."""
    own = costs[name]
    return (
        row.prompt_tokens[name] * own["prompt_token_s"]
        + row.completion_tokens[name] * own["output_token_s"]
    )


def oracle(row: Outcome, costs: Costs) -> str:
    """The cheapest tier that passes; where none does, the cheapest."""
    by_cost = sorted(costs, key=lambda name: cost_of(row, name, costs))
    return next((name for name in by_cost if row.scores[name] == 1.0), by_cost[0])


def point(rows: Sequence[Outcome], chosen: Sequence[str], costs: Costs) -> dict[str, Any]:
    """Quality and cost of one choice a question; task functions weigh alike in both."""
    passed: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for row, name in zip(rows, chosen, strict=True):
        passed[row.task].append(row.scores[name])
        seconds[row.task].append(cost_of(row, name, costs))
    share = {name: round(chosen.count(name) / len(chosen), 3) for name in costs}
    return {
        "pass_rate": round(statistics.mean(map(statistics.mean, passed.values())), 4),
        "machine_seconds_per_answer": float(
            f"{statistics.mean(map(statistics.mean, seconds.values())):.4g}"
        ),
        "share": {name: part for name, part in share.items() if part},
    }


def points(rows: Sequence[Outcome], costs: Costs) -> dict[str, dict[str, Any]]:
    """Every single tier, and the oracle."""
    found = {name: point(rows, [name] * len(rows), costs) for name in costs}
    return {**found, "oracle": point(rows, [oracle(row, costs) for row in rows], costs)}


def gain(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The oracle against the best single tier."""
    best = max((name for name in found if name != "oracle"), key=lambda n: found[n]["pass_rate"])
    dear, ideal = found[best], found["oracle"]
    return {
        "best_tier": best,
        "more_points": round(100 * (ideal["pass_rate"] - dear["pass_rate"]), 1),
        "cost_share": round(
            ideal["machine_seconds_per_answer"] / dear["machine_seconds_per_answer"], 3
        ),
    }


def draw(found: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Cost against quality, one point each; the line is random routing between tiers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    tiers = [name for name in found if name != "oracle"]
    x = {name: 1000 * found[name]["machine_seconds_per_answer"] for name in found}
    y = {name: 100 * found[name]["pass_rate"] for name in found}
    line = {"ls": "--", "color": "0.6", "lw": 1, "label": "routing at random"}
    axes.plot([x[n] for n in tiers], [y[n] for n in tiers], **line)
    axes.scatter([x[n] for n in tiers], [y[n] for n in tiers], color="C0", zorder=3)
    axes.scatter([x["oracle"]], [y["oracle"]], color="C1", marker="*", s=140, zorder=3)
    for name in found:
        axes.annotate(name, (x[name], y[name]), (7, -4), textcoords="offset points")
    axes.set_xlabel(f"machine-milliseconds per answer, {CONCURRENT} at a time")
    axes.set_ylabel("pass rate, mean over task functions, %")
    axes.set_title("The room that routing can win")
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0, right=1.15 * max(x.values()))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="write the JSON here too, the plot beside it")
    options = parser.parse_args()
    rows = [row for row in read_outcomes() if row.suite == "tasks"]
    check(rows)
    costs = measure_tiers(options.rounds)
    found = points(rows, costs)
    figures = {
        **describe(
            f"{CONCURRENT} requests of {PROMPT_TOKENS} + {OUTPUT_TOKENS} tokens, one thread, "
            "processor time, tiers in turns; tokens and verdicts of the committed outcomes"
        ),
        "questions": len(rows),
        "seconds_per_token": {
            tier: {name: float(f"{value:.4g}") for name, value in own.items()}
            for tier, own in costs.items()
        },
        "neighbours": neighbours(costs),
        "points": found,
        "oracle_over_best_tier": gain(found),
    }
    print(json.dumps(figures, indent=2))
    write(options.out, figures)
    if options.out is not None:
        draw(found, options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
