"""Speculative escalation: a rejected answer as a draft, against writing the next one from scratch.

`small` answers prompts greedily; then `base` answers them, with and without small's answer as
OpenAI's `prediction`, in turns, in one engine with its default speculation. Correctness first: the
greedy answers are the same token for token. Then speed, by the share of the draft that base took
over: the median of each prompt's ratios.

Run it as `chrt -f 10 python -m tests.benchmarks.bench_escalation` where others compute.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.bundled import bundled_path
from backends.contract import SamplingParams, Usage
from backends.evaluation.items import read_items
from backends.llm import LLM
from gateway.dispatch.drafts import BREAK_EVEN
from tests.benchmarks.environment import describe, write

ROUNDS = 5
HALF = 0.5
WARM_UP = 12
"""Requests before anything is measured: the engine learns what its steps cost."""


class Asked:
    """One engine, one question at a time."""

    def __init__(self, model: str) -> None:
        self._llm = LLM(model, enable_prefix_caching=False)
        self._count = 0

    def __call__(
        self, prompt: str, max_tokens: int, draft: str | None = None
    ) -> tuple[list[int], str, float, Usage]:
        """(tokens, text, seconds, usage)"""
        engine, self._count = self._llm.engine, self._count + 1
        ids = self._llm.tokenizer.encode_chat([{"role": "user", "content": prompt}])
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        began = time.perf_counter()
        engine.add_request(str(self._count), ids, params, prediction_text=draft)
        tokens: list[int] = []
        text, usage = "", None
        while engine.has_unfinished:
            for event in engine.step():
                tokens += event.token_ids
                text += event.text
                usage = event.usage or usage
        took_s = time.perf_counter() - began
        assert usage is not None
        return tokens, text, took_s, usage


def measure(prompts: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """One row a prompt."""
    small, base = Asked(str(bundled_path("small"))), Asked(str(bundled_path("base")))
    drafts = [small(prompt, most)[1] for prompt, most in prompts]
    for (prompt, most), draft in list(zip(prompts, drafts, strict=True))[:WARM_UP]:
        base(prompt, most, draft)
    rows = []
    for (prompt, most), draft in zip(prompts, drafts, strict=True):
        ratios: list[float] = []
        for turn in range(ROUNDS):
            both = {}
            for drafted in (False, True) if turn % 2 else (True, False):
                both[drafted] = base(prompt, most, draft if drafted else None)
            assert both[True][0] == both[False][0], f"the answer to {prompt!r} has changed"
            ratios.append(both[False][2] / both[True][2])
        usage = both[True][3]
        tried = usage.accepted_prediction_tokens + usage.rejected_prediction_tokens
        rows.append(
            {
                "draft_characters": len(draft),
                "answer_tokens": len(both[True][0]),
                "tried": tried,
                "accepted": usage.accepted_prediction_tokens,
                "speed_up": statistics.median(ratios),
                "plain_ms": both[False][2] * 1e3,
            }
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and total over a group of prompts."""
    if not rows:
        return {"prompts": 0}
    plain = sum(row["plain_ms"] for row in rows)
    return {
        "prompts": len(rows),
        "mean_answer_tokens": round(statistics.mean(row["answer_tokens"] for row in rows), 1),
        "speed_up_median": round(statistics.median(row["speed_up"] for row in rows), 3),
        "speed_up_total": round(plain / sum(r["plain_ms"] / r["speed_up"] for r in rows), 3),
        "share_accepted": round(
            sum(r["accepted"] for r in rows) / max(1, sum(r["tried"] for r in rows)), 3
        ),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=90)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    items = [item for suite in ("chat", "docs", "tasks") for item in read_items(suite)]
    step = max(1, len(items) // chosen.prompts)
    rows = measure([(item.prompt, item.max_tokens) for item in items[::step]])
    half = [r for r in rows if r["tried"] and r["accepted"] >= HALF * r["tried"]]
    tried_less = [r for r in rows if r["tried"] and r["accepted"] < HALF * r["tried"]]
    workload = "base's greedy answers with small's as prediction, batch 1, in turns"
    figures = describe(workload)
    figures["results"] = {
        "at_least_half_accepted": summary(half),
        "of_them_16_tokens_or_more": summary([r for r in half if r["answer_tokens"] >= 16]),
        "less_accepted": summary(tried_less),
        "not_tried": summary([r for r in rows if not r["tried"]]),
        "elsewhere": summary([r for r in rows if r not in half]),
        "all": summary(rows),
        "break_even_of_drafts": BREAK_EVEN,
        "rounds": ROUNDS,
    }
    write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
