"""Dividing an integer without losing any of it."""

from collections.abc import Sequence
from itertools import accumulate, pairwise


def share(total: int, weights: Sequence[int]) -> list[int]:
    """Divide an integer in proportion to weights; the shares sum to it exactly.

    Running sums are rounded down, so no share is off by one or more, and shares of equal weights
    differ by at most one. Weights are not negative, and at least one is positive.
    """
    whole = sum(weights)
    ends = [total * up_to // whole for up_to in accumulate(weights, initial=0)]
    return [end - start for start, end in pairwise(ends)]
