"""Sampling by sorting, with the same counter-based noise as the kernel."""

from typing import Final

import torch
from torch import Tensor

_WORD: Final = 0xFFFFFFFF


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    places: Tensor,
) -> Tensor:
    greedy = temperature <= 0
    scaled = logits.float() / torch.where(greedy, 1.0, temperature)[:, None]
    kept = _kept(scaled, top_k[:, None], top_p[:, None].double(), min_p[:, None])
    noisy = (scaled + gumbel(seeds, places, logits.shape[1])).masked_fill(~kept, -torch.inf)
    return torch.where(greedy[:, None], scaled, noisy).argmax(dim=1)


def penalise(
    logits: Tensor, prompt_tokens: Tensor, counts: Tensor, holders: Tensor, strengths: Tensor
) -> None:
    rows = holders >= 0
    held, values = counts[holders[rows]], logits[rows]
    repetition, frequency, presence = strengths[rows].T.unsqueeze(-1)
    seen = prompt_tokens[holders[rows]] | (held > 0)
    repeated = torch.where(values > 0, values / repetition, values * repetition)
    values = torch.where(seen, repeated, values)
    logits[rows] = values - frequency * held - presence * (held > 0)


def gumbel(seeds: Tensor, places: Tensor, vocabulary: int) -> Tensor:
    """[R, V] fp32 noise: a function of (seed, place, token) and nothing else."""
    quads = torch.arange(-(-vocabulary // 4), device=seeds.device)
    words = philox(
        seeds[:, None],
        [
            quads[None, :],
            places[:, None] & _WORD,
            places[:, None] >> 32,
            torch.zeros_like(places)[:, None],
        ],
    )
    bits = torch.stack(words, dim=-1).flatten(1)[:, :vocabulary]
    uniform = ((bits >> 9).float() + 0.5) * 2.0**-23
    return -(-uniform.log()).log()


def philox(seed: Tensor, counter: list[Tensor]) -> list[Tensor]:
    """Philox4x32-10: four 32-bit words, held in int64, of a 64-bit key and four counter words."""
    low, high = seed & _WORD, (seed >> 32) & _WORD
    c0, c1, c2, c3 = counter
    for _ in range(10):
        # A product fills all 64 bits and so may look negative; its halves are right all the same.
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((second >> 32) & _WORD) ^ c1 ^ low,
            second & _WORD,
            ((first >> 32) & _WORD) ^ c3 ^ high,
            first & _WORD,
        )
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    shape = (c0 + c1).shape
    return [word.expand(shape) for word in (c0, c1, c2, c3)]


def _kept(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """[R, V] bool: what min_p, top_k and top_p leave, in this order."""
    likeliest = scaled.amax(dim=1, keepdim=True)
    allowed = scaled >= likeliest + min_p.log()
    ordered, _ = scaled.masked_fill(~allowed, -torch.inf).sort(dim=1, descending=True)
    ranks = torch.arange(scaled.shape[1], device=scaled.device)
    weights = (ordered.double() - likeliest).exp().masked_fill(ranks >= top_k, 0.0)
    before = weights.cumsum(dim=1) - weights
    enough = (top_p >= 1) | (before < top_p * weights.sum(dim=1, keepdim=True))
    needed = (ranks < top_k) & enough
    last = needed.sum(dim=1, keepdim=True).clamp(min=1) - 1
    return allowed & (scaled >= ordered.gather(1, last))
