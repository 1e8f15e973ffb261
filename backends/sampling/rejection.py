"""Verification of drafted tokens: which of them stand, and what comes after.

Exact rejection sampling accepts a draft t with probability min(1, p(t) / q(t)) and otherwise
samples the residual max(0, p − q), normalised. Our proposers are certain of their draft, q(t) = 1,
so that is: accept with probability p(t), else sample p without t. One draw x from p does both at
once: x = t has probability p(t), and given x ≠ t, x is distributed as p without t. So each row is
sampled as if there were no draft, and the draft stands while it equals the sample. As the draw
depends on (seed, place) alone, an answer is the same token by token with and without speculation,
not only in distribution.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", §2.3.
"""

from collections.abc import Sequence


def accepted_length(sampled: Sequence[int], drafts: Sequence[int]) -> int:
    """Count the drafts that stand.

    Args:
        sampled: One token per row: row i was sampled from the target given drafts[:i].
        drafts: One fewer than `sampled`.

    Returns:
        n in 0..len(drafts): the sequence grows by sampled[: n + 1], whose first n are the drafts.
    """
    for place, (sample, draft) in enumerate(zip(sampled, drafts, strict=False)):
        if sample != draft:
            return place
    return len(drafts)
