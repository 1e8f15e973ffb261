# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sampling in Triton, without a sort and without a normalising sum.

`threshold_kernel` finds the least logit that a row keeps: it writes the few logits that can be near
it to a scratch row, then bisects over their bit patterns, which order as the numbers do.
`pick_kernel` adds Gumbel noise and takes the largest of each chunk of the vocabulary, so that one
row fills the GPU, and `join_kernel` the largest of the chunks.

Source: Gu et al. 2026, "Qrita" (arXiv 2602.01518), for truncation by outliers and pivots.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _key(x):
    """int32 that orders as the fp32 numbers do."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _scaled(logits, offsets, mask, temperature, least):
    """Logits over temperature; what is below `least`, or masked, is -inf."""
    x = tl.load(logits + offsets, mask=mask, other=float("-inf")).to(tl.float32)
    x = tl.div_rn(x, tl.zeros_like(x) + temperature)
    return tl.where(x >= least, x, float("-inf"))


@triton.jit
def _above(near, count, key, likeliest, BLOCK: tl.constexpr):
    """How many of the first `count` values lie above a key, and their mass."""
    number = 0
    mass = tl.zeros((1,), tl.float64)
    for start in range(0, count, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = tl.load(near + v, mask=v < count, other=float("-inf"))
        over = (_key(x) > key) & (v < count)
        number += tl.sum(over.to(tl.int32), axis=0)
        mass += tl.sum(tl.where(over, tl.exp(x - likeliest), 0.0).to(tl.float64), axis=0)
    return number, tl.sum(mass, axis=0)


@triton.jit
def threshold_kernel(
    logits, temperature, top_k, top_p, min_p, scratch, thresholds, vocabulary, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    heat, k = tl.load(temperature + row), tl.load(top_k + row)
    share, floor = tl.load(top_p + row), tl.load(min_p + row)
    truncates = (k < vocabulary) | (share < 1.0)
    if (heat <= 0.0) | ((not truncates) & (floor <= 0.0)):
        tl.store(thresholds + row, float("-inf"))
        return
    line, near = logits + row * vocabulary, scratch + row * vocabulary
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        v = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, _scaled(line, v, v < vocabulary, heat, float("-inf")))
    likeliest = tl.max(largest, axis=0)
    least = likeliest + tl.log(floor)  # log(0) keeps all
    if not truncates:
        tl.store(thresholds + row, least)
        return

    # How many tokens, and how much mass, lie within each of eight distances of the likeliest?
    steps = tl.arange(0, 8)
    distances = tl.where(steps == 7, float("inf"), 0.25 * (1 << steps).to(tl.float32))
    numbers = tl.zeros((8,), tl.int32)
    masses = tl.zeros((8,), tl.float64)
    for start in range(0, vocabulary, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = _scaled(line, v, v < vocabulary, heat, least)
        inside = (x[:, None] >= likeliest - distances[None, :]) & (x[:, None] > float("-inf"))
        numbers += tl.sum(inside.to(tl.int32), axis=0)
        weights = tl.exp(x - likeliest)
        masses += tl.sum(tl.where(inside, weights[:, None], 0.0), axis=0).to(tl.float64)
    # The nearest that surely holds all that is kept. A little more mass: sums round.
    whole = tl.max(masses, axis=0)
    enough = tl.where(k < vocabulary, numbers >= k, masses >= whole * share * 1.0001)
    holds = enough | (steps == 7)
    distance = tl.min(tl.where(holds, distances, float("inf")), axis=0)

    count = 0
    for start in range(0, vocabulary, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = _scaled(line, v, v < vocabulary, heat, least)
        taken = (x >= likeliest - distance) & (x > float("-inf"))
        tl.store(near + count + tl.cumsum(taken.to(tl.int32), axis=0) - 1, x, mask=taken)
        count += tl.sum(taken.to(tl.int32), axis=0)
    tl.debug_barrier()  # Threads read what others wrote.

    # The least key with fewer than k tokens above it, then that with less than the share above.
    top = _key(likeliest + tl.zeros((1,), tl.float32))
    high = tl.max(top, axis=0)
    low = -2147483647 - 1 + tl.zeros_like(high)
    kth = low
    if k <= count:
        while high.to(tl.int64) - low.to(tl.int64) > 1:
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            number, _ = _above(near, count, middle, likeliest, BLOCK)
            if number < k:
                high = middle
            else:
                low = middle
        kth = high
    least_key = kth
    if share < 1.0:
        number, mass = _above(near, count, kth, likeliest, BLOCK)
        value = tl.where(kth >= 0, kth, kth ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)
        if k <= count:
            mass += (k - number) * tl.exp(value - likeliest).to(tl.float64)
        if k >= vocabulary:
            mass = whole
        high = tl.max(top, axis=0)
        low = tl.maximum(kth, -2147483647) - 1
        while high.to(tl.int64) - low.to(tl.int64) > 1:
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            _, over = _above(near, count, middle, likeliest, BLOCK)
            if over < mass * share:
                high = middle
            else:
                low = middle
        least_key = high
    bits = tl.where(least_key >= 0, least_key, least_key ^ 0x7FFFFFFF)
    kept = tl.where(least_key == -2147483647 - 1, least, bits.to(tl.float32, bitcast=True))
    tl.store(thresholds + row, tl.maximum(kept, least))


@triton.jit
def pick_kernel(
    logits, temperature, thresholds, seeds, places, best, best_token, vocabulary, chunks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    heat = tl.load(temperature + row)
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    if heat <= 0.0:
        score = tl.load(logits + row * vocabulary + v, mask=v < vocabulary, other=float("-inf")).to(
            tl.float32
        )
    else:
        least = tl.load(thresholds + row)
        x = _scaled(logits + row * vocabulary, v, v < vocabulary, heat, least)
        # A counter's four words are the noise of four neighbouring tokens.
        quad = (chunk * (BLOCK // 4) + tl.arange(0, BLOCK // 4)).to(tl.uint32)
        place = tl.load(places + row)
        low = (place & 0xFFFFFFFF).to(tl.uint32) + tl.zeros_like(quad)
        high = (place >> 32).to(tl.uint32) + tl.zeros_like(quad)
        seed = tl.load(seeds + row).to(tl.uint64)
        w0, w1, w2, w3 = tl.philox(seed, quad, low, high, tl.zeros_like(quad))
        words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
        uniform = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
        score = x - tl.log(-tl.log(uniform))
    score = tl.where(v < vocabulary, score, float("-inf"))
    largest = tl.max(score, axis=0)
    token = tl.min(tl.where((score == largest) & (v < vocabulary), v, 2147483647), axis=0)
    tl.store(best + row * chunks + chunk, largest)
    tl.store(best_token + row * chunks + chunk, token)


@triton.jit
def join_kernel(best, best_token, out, chunks, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    score = tl.load(best + row * chunks + c, mask=c < chunks, other=float("-inf"))
    token = tl.load(best_token + row * chunks + c, mask=c < chunks, other=2147483647)
    largest = tl.max(score, axis=0)
    tl.store(out + row, tl.min(tl.where(score == largest, token, 2147483647), axis=0).to(tl.int64))


@triton.jit
def penalise_kernel(
    logits, prompt_tokens, counts, holders, strengths, vocabulary, BLOCK: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    holder = tl.load(holders + row)
    if holder >= 0:
        v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = v < vocabulary
        held = tl.load(counts + holder * vocabulary + v, mask=mask, other=0)
        in_prompt = tl.load(prompt_tokens + holder * vocabulary + v, mask=mask, other=0) != 0
        seen = in_prompt | (held > 0)
        if tl.max(seen.to(tl.int32), axis=0) > 0:
            repetition = tl.load(strengths + row * 3)
            frequency = tl.load(strengths + row * 3 + 1)
            presence = tl.load(strengths + row * 3 + 2)
            x = tl.load(logits + row * vocabulary + v, mask=mask, other=0.0)
            divided = tl.div_rn(x, tl.zeros_like(x) + repetition)
            x = tl.where(seen, tl.where(x > 0, divided, x * repetition), x)
            x = x - frequency * held.to(tl.float32) - presence * (held > 0).to(tl.float32)
            tl.store(logits + row * vocabulary + v, x, mask=mask)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    places: Tensor,
) -> Tensor:
    rows, vocabulary = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return out
    thresholds = logits.new_empty(rows, dtype=torch.float32)
    scratch = logits.new_empty((rows, vocabulary), dtype=torch.float32)
    threshold_kernel[(rows,)](
        logits, temperature, top_k, top_p, min_p, scratch, thresholds, vocabulary,
        **threshold_options(),
    )  # fmt: skip
    options = pick_options()
    chunks = triton.cdiv(vocabulary, options["BLOCK"])
    best = scratch  # Read no more: its first values hold the chunks' best.
    best_token = torch.empty((rows, chunks), dtype=torch.int32, device=logits.device)
    pick_kernel[(chunks, rows)](
        logits, temperature, thresholds, seeds, places, best, best_token, vocabulary, chunks,
        **options,
    )  # fmt: skip
    join_kernel[(rows,)](best, best_token, out, chunks, **join_options(chunks))
    return out


def penalise(
    logits: Tensor, prompt_tokens: Tensor, counts: Tensor, holders: Tensor, strengths: Tensor
) -> None:
    rows, vocabulary = logits.shape
    if rows == 0:
        return
    options = pick_options()
    penalise_kernel[(triton.cdiv(vocabulary, options["BLOCK"]), rows)](
        logits,
        prompt_tokens.contiguous(),
        counts.contiguous(),
        holders,
        strengths.contiguous(),
        vocabulary,
        **options,
    )


def threshold_options() -> dict[str, Any]:
    """One program reads a whole row, three times: it needs many threads."""
    return {"BLOCK": 4096, "num_warps": 16}


def pick_options() -> dict[str, Any]:
    """Chunks small enough that one row of a large vocabulary fills a GPU."""
    return {"BLOCK": 1024, "num_warps": 4}


def join_options(chunks: int) -> dict[str, Any]:
    """One tile holds every chunk."""
    return {"BLOCK_C": triton.next_power_of_2(chunks), "num_warps": 1}
