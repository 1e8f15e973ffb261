"""The README's table of figures, made from the committed benchmark files.

`python -m tests.benchmarks.readme` rewrites the table; a test holds the README against it.
"""

import json
from pathlib import Path
from typing import Any

from tests.benchmarks.environment import RESULTS

README = Path(__file__).parents[2] / "README.md"
HEADING = "## Figures\n"
WEIGHTS = "backends/bundled/README.md#after-new-weights-outcomes-head-judges-figures"
PLOT = "(tests/benchmarks/results/family.png)"


def load(name: str) -> dict[str, Any]:
    """One benchmark file."""
    figures: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return figures


def rows() -> list[tuple[str, str, str]]:
    """(what, figure, benchmark file) of every line."""
    batching, classifier = load("batching"), load("classifier")["results"]
    runs = {run["what"]: run for run in load("gateway")["results"]}
    startup = load("startup")["results"][0]
    concurrent, static = batching["concurrent"], batching["static"]
    miss = runs["headgate, every prompt different"]
    litellm = runs["LiteLLM proxy, every prompt different"]
    hits = runs["headgate, exact hits out of Redis"]
    single = runs["headgate, exact hits out of Redis, one at a time"]
    tasks, tfidf = classifier["held_out"]["tasks"], classifier["baseline_tuned"]["tasks"]
    handwritten = classifier["handwritten"]
    at_100 = next(x for x in classifier["latency"] if x["tokens"] == 100)
    worst = max(x["p50_ms"] for x in classifier["latency"])
    family = load("family")
    tiers, ideal = family["points"], family["oracle_over_best_tier"]
    return [
        (
            "32 concurrent requests over the same one after another, `small`",
            f"{concurrent['concurrent_over_one_by_one']:.1f}× "
            f"({concurrent['concurrent_tokens_per_s']:,.0f} tokens/s)",
            "batching",
        ),
        (
            "batch 1 over `transformers.generate`, the better of fp32 and bf16",
            f"{concurrent['batch_1_over_transformers']:.1f}×",
            "batching",
        ),
        (
            "continuous over static batching, lengths of a recorded trace, scaled",
            f"{static['continuous_over_static']:.2f}× (ideal {static['ideal_ratio']:.2f}×)",
            "batching",
        ),
        *(
            (
                f"over llama.cpp {run['llama_cpp']} without AMX, random {run['model']} model, the "
                "same int8 weights: prompt of 512, one answer, 16 at once",
                ", ".join(f"{ratio:.1f}×" for ratio in run["ours_over_llama_cpp"].values()),
                "llama_cpp",
            )
            for run in load("llama_cpp")["results"]
        ),
        (
            "gateway: classify, route, budget, ledger; every prompt different; one worker",
            f"{miss['requests_per_s']:,.0f} requests/s, "
            f"{miss['requests_per_cpu_s']:,.0f} a CPU-second",
            "gateway",
        ),
        (
            f"the same over LiteLLM's proxy {litellm['version']}, in turns",
            f"{litellm['headgate_times_requests_per_s']:.1f}×, "
            f"{litellm['headgate_times_requests_per_cpu_s']:.1f}× a CPU-second",
            "gateway",
        ),
        (
            "exact hits out of Redis, 16 connections; p50 at one",
            f"{hits['requests_per_s']:,.0f}/s; {single['p50_ms']:.2f} ms",
            "gateway",
        ),
        (
            "ready after `headgate serve`; gateway process, resident",
            f"{startup['ready_s_median']:.1f} s; "
            f"{startup['resident_bytes']['gateway'] / 1e6:.0f} MB",
            "startup",
        ),
        (
            "task of a prompt, held out: accuracy, macro-F1 (TF-IDF with logistic regression)",
            f"{tasks['accuracy']:.3f}, {tasks['macro_f1']:.3f} "
            f"({tfidf['accuracy']:.3f}, {tfidf['macro_f1']:.3f})",
            "classifier",
        ),
        (
            f"the same on {handwritten['prompts']} hand-written prompts",
            f"{handwritten['accuracy']:.3f}, {handwritten['macro_f1']:.3f}",
            "classifier",
        ),
        (
            "classification, p50 at 100 tokens; at most, up to 10,000",
            f"{at_100['p50_ms']:.2f} ms; {worst:.2f} ms",
            "classifier",
        ),
        (
            "pass rate of the bundled tiers, mean over task functions",
            ", ".join(
                f"`{name}` {100 * point['pass_rate']:.1f} %"
                for name, point in tiers.items()
                if name != "oracle"
            ),
            "family",
        ),
        (
            "neighbouring tiers, machine-seconds per output token, 16 at a time (the model alone)",
            ", ".join(
                f"{pair['output_token_ratio']:.1f}× ({pair['output_token_in_model_ratio']:.1f}×; "
                f"`{'` to `'.join(pair['tiers'])}`)"
                for pair in family["neighbours"]
            ),
            "family",
        ),
        (
            "the room that routing can win: for each question the cheapest tier that passes",
            f"{100 * tiers['oracle']['pass_rate']:.1f} % at "
            f"{100 * ideal['cost_share']:.0f} % of `{ideal['best_tier']}`'s cost "
            f"({ideal['more_points']:+.1f} points)",
            "family",
        ),
        (
            "what int8 weights lose against bf16: points of pass rate; bits per byte",
            ", ".join(
                f"`{run['model']}` {run['points_lost']:.1f}, "
                f"{max(run['bits_lost_percent'].values()):.2f} %"
                for run in load("int8")["results"]
            ),
            "int8",
        ),
        *_routing(),
        *_planner(),
    ]


def _routing() -> list[tuple[str, str, str]]:
    """Of routing, on the outcomes of the bundled tiers."""
    routing, cascades = load("routing")["results"], load("cascades")["results"]
    frozen, marked = routing["question_alone"]["frozen"], cascades["measured_marked"]
    both = cascades["measured"]["all"]
    shares = both["cost_share_at_equal_quality"]
    return [
        (
            "routing by the question alone: area, (router − control of equal cost) ÷ (oracle − "
            f"control) over 0 to 100 % of `base`'s cost, on {frozen['rows']:,} frozen rows; over "
            "the best offline model",
            f"{_interval(frozen['area']['ours'])}; {frozen['share_of_best']['value']:.2f}×",
            "routing",
        ),
        (
            "question and answer judged together: the same area on the "
            f"{marked['rows']:,} rows marked as test; with what is nearly the same as one, "
            f"{both['rows']:,} rows",
            f"{_interval(marked['area']['question_and_answer'])}; "
            f"{_interval(both['area']['question_and_answer'])}",
            "cascades",
        ),
        (
            "`base`'s quality at a share of its cost, all frozen rows: cascades, the oracle",
            f"{100 * shares['cascade']['value']:.0f} %, {100 * shares['oracle']['value']:.0f} %",
            "cascades",
        ),
    ]


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _planner() -> list[tuple[str, str, str]]:
    """Of the planner, once it has been measured."""
    if not (RESULTS / "planner.json").is_file():
        return []
    found = load("planner")
    return [
        (
            "`headgate plan` calibrated on two loads on `small`, predicting nine others "
            "on three tiers: largest error of tokens/s, of p50 TPOT",
            f"{100 * abs(found['worst_throughput_error']):.0f} %, "
            f"{100 * abs(found['worst_tpot_p50_error']):.0f} %",
            "planner",
        ),
        (
            "one plan, process start included; its simulator over real time, at least",
            f"{sorted(found['one_plan_s'])[1]:.1f} s; "
            f"{found['slowest_simulation_over_real_time']:.0f}×",
            "planner",
        ),
    ]


def table() -> str:
    """The section's text, heading included: a table for each machine that was measured on."""
    lines = [
        HEADING,
        "Load generator and upstream run on the same cores as what is measured.",
        "Again: `make bench`, then `python -m tests.benchmarks.readme`; routing and cascades as "
        f"[after new weights]({WEIGHTS}).",
    ]
    by_device: dict[str, list[str]] = {}
    for what, figure, name in rows():
        line = f"| {what} | {figure} | [{name}](tests/benchmarks/results/{name}.json) |"
        by_device.setdefault(load(name)["device"], []).append(line)
    for device, measured in by_device.items():
        lines += ["", f"On {device}:", "", "| what | figure | file |", "|---|---|---|", *measured]
    lines.append("\n![cost and quality of every tier and of the oracle router]" + PLOT)
    return "\n".join(lines) + "\n"


def section(text: str) -> tuple[int, int]:
    """Where the README's section begins and ends."""
    start = text.index(HEADING)
    return start, text.index("\n## ", start)


def main() -> None:
    """Rewrite the section."""
    text = README.read_text()
    start, end = section(text)
    README.write_text(text[:start] + table() + text[end:])


if __name__ == "__main__":
    main()
