"""Prefix hits over two replicas: by turns, and by prefix affinity and load, on recorded traffic.

    python -m tests.benchmarks.bench_affinity --trace mooncake_conversation.jsonl.gz --out …

The gateway's `ReplicaChoice` decides; each replica is the engine's own `PrefixCache` over its
`BlockPool`, driven directly: no model runs, so the trace's hour takes seconds. Lengths are scaled
by 1/32, so that a block of the trace (512 tokens) is one of the engine's (16). Arrival times are as
recorded; a request is under way for its fresh prompt tokens at 375 tokens/s and its answer's at
20 ms each (as recorded), which only the choice sees.
"""

import argparse
import gzip
import heapq
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.client.replica_choice import ReplicaChoice
from backends.contract import SamplingParams
from backends.engine.block_pool import BlockPool
from backends.engine.prefix_cache import PrefixCache
from backends.engine.request import Request
from tests.benchmarks.environment import describe, write

BLOCK_TOKENS = 16
SCALE = 512 // BLOCK_TOKENS
NUM_BLOCKS = 4096
REPLICAS = 2
_PREFILL_PER_S = 375.0
_TPOT_S = 0.02
WORKLOAD = (
    f"mooncake_conversation, lengths ÷ {SCALE}, arrivals as recorded; {REPLICAS} replicas, each "
    f"the engine's prefix cache over {NUM_BLOCKS} blocks of {BLOCK_TOKENS} tokens, driven directly"
)
Row = dict[str, Any]


class Replica:
    """An engine's prefix cache without the engine."""

    def __init__(self, num_blocks: int = NUM_BLOCKS) -> None:
        self._pool = BlockPool(num_blocks)
        self._cache = PrefixCache(self._pool, BLOCK_TOKENS)

    def serve(self, row: Row) -> int:
        """Take a prompt in; the blocks of it that were cached."""
        tokens = [token for block in row["hash_ids"] for token in [block] * BLOCK_TOKENS]
        request = Request(
            request_id="",
            prompt_token_ids=tokens,
            params=SamplingParams(),
            max_tokens=1,
            token_ids=[*tokens, 0],
        )
        found = self._cache.match(request)
        self._pool.share(found)
        request.block_ids = found + self._pool.allocate(len(row["hash_ids"]) - len(found))
        request.num_computed_tokens, request.num_cached_blocks = len(tokens), len(found)
        self._cache.offer(request)
        self._pool.release(request.block_ids)
        return len(found)


def run(rows: Sequence[Row], gateways: int | None) -> dict[str, Any]:
    """Route all requests; `gateways` share the traffic by turns, None: round robin of replicas."""
    now = [0.0]
    choices = [
        ReplicaChoice(
            [f"http://r{n}.test/v1" for n in range(REPLICAS)],
            block_tokens=BLOCK_TOKENS,
            clock=lambda: now[0],
        )
        for _ in range(gateways or 0)
    ]
    replicas = [Replica() for _ in range(REPLICAS)]
    hits = common = 0
    tokens, computed = [0] * REPLICAS, [0] * REPLICAS
    minutes: dict[int, list[int]] = defaultdict(lambda: [0] * REPLICAS)
    ends: list[tuple[float, int, int, int, int]] = []
    for number, row in enumerate(rows):
        now[0] = row["timestamp"] / 1000
        while ends and ends[0][0] <= now[0]:
            _, _, gateway, replica, size = heapq.heappop(ends)
            choices[gateway].end(replica, size)
        blocks, answer = row["hash_ids"], row["output_length"] // SCALE
        size = len(blocks) * BLOCK_TOKENS + answer
        chosen = number % REPLICAS
        if gateways:
            choice = choices[number % gateways]
            chosen = choice.choose(blocks, size, range(REPLICAS))
            choice.begin(chosen, blocks, size)
        found = replicas[chosen].serve(row)
        fresh = (len(blocks) - found) * BLOCK_TOKENS
        if gateways:
            took_s = fresh / _PREFILL_PER_S + row["output_length"] * _TPOT_S
            heapq.heappush(ends, (now[0] + took_s, number, number % gateways, chosen, size))
        hits += found
        common += min(found, 1)
        tokens[chosen] += size
        computed[chosen] += fresh + answer
        minutes[int(now[0] // 60)][chosen] += size
    by_minute = [_imbalance(minute) for minute in minutes.values() if min(minute) > 0]
    return {
        "hit_blocks": hits,
        "hit_blocks_beyond_the_first": hits - common,
        "imbalance_tokens": round(_imbalance(tokens), 3),
        "imbalance_computed_tokens": round(_imbalance(computed), 3),
        "imbalance_by_minute_median": round(statistics.median(by_minute), 3),
        "imbalance_by_minute_worst": round(max(by_minute), 3),
    }


def run_pooled(rows: Sequence[Row]) -> dict[str, Any]:
    """All requests in one cache as large as those of all replicas: what placement aims at."""
    replica = Replica(NUM_BLOCKS * REPLICAS)
    found = [replica.serve(row) for row in rows]
    beyond = sum(max(blocks - 1, 0) for blocks in found)
    return {"hit_blocks": sum(found), "hit_blocks_beyond_the_first": beyond}


def _imbalance(loads: Sequence[int]) -> float:
    return max(loads) * len(loads) / max(sum(loads), 1)


def measure(rows: list[Row]) -> list[dict[str, Any]]:
    """All traffic, and the conversations of it that have more than one turn."""
    begun = Counter(row["hash_ids"][1] for row in rows if len(row["hash_ids"]) > 1)
    several = [r for r in rows if len(r["hash_ids"]) > 1 and begun[r["hash_ids"][1]] > 1]
    results = []
    for traffic, chosen in (("all", rows), ("multi-turn", several)):
        turns = run(chosen, None)
        about = {"traffic": traffic, "requests": len(chosen)}
        results.append({**about, "by": "turns", **turns})
        pooled = run_pooled(chosen)
        results.append({**about, "by": "one cache of both", **pooled, **_ratios(pooled, turns)})
        for gateways in (1, 2):
            found = run(chosen, gateways)
            by = {"by": "affinity", "gateways": gateways}
            results.append({**about, **by, **found, **_ratios(found, turns)})
    return results


def _ratios(found: dict[str, Any], turns: dict[str, Any]) -> dict[str, float]:
    return {
        f"{name}_ratio": round(found[name] / turns[name], 3)
        for name in ("hit_blocks", "hit_blocks_beyond_the_first")
    }


def main() -> int:
    """Measure and print; `--out` writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with gzip.open(chosen.trace, "rt") as file:
        rows = [json.loads(line) for line in file]
    results = measure(rows)
    for result in results:
        assert result.get("imbalance_tokens", 1.0) <= 1.25, result
    figures = {**describe(WORKLOAD), "results": results}
    write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
