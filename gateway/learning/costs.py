"""What answers are expected to cost when a cascade decides: by the prompt, then by an answer too.

Straight lines, fitted on measured rows: characters of the prompt, and tokens of an answer that is
there, are what a gateway knows before the next one is asked.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.learning.outcomes import Outcomes

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
LEAST_COST = 0.05
"""Of a backend's mean: a straight line must not make an answer free."""


class ExpectedCosts(Struct, frozen=True):
    """Of N requests, in the outcomes' dollars."""

    question: Floats
    """[N, K], by the prompt alone."""
    after: Floats
    """[N, K, K], of backend j once k has answered."""

    @classmethod
    def of(cls, outcomes: Outcomes, rows: Mask) -> "ExpectedCosts":
        """As the measured `rows` tell."""
        size, tokens = _sizes(outcomes), _tokens(outcomes, rows)
        costs = outcomes.costs
        lengths = range(costs.shape[1])
        return cls(
            question=_lines([size], costs, rows),
            after=np.stack([_lines([size, tokens[:, k]], costs, rows) for k in lengths], axis=1),
        )

    def only(self, rows: Mask) -> "ExpectedCosts":
        """Some of the rows, [N]."""
        return ExpectedCosts(self.question[rows], self.after[rows])


def costs_at_one_load(outcomes: Outcomes, rows: Mask) -> Floats:
    """[N, K]: practice was asked at another time and load, so what its answers cost is expected
    from the measured `rows`: by the prompt's characters and the answer's tokens."""
    practice = outcomes.practice
    if not practice.any() or not rows.any():
        return outcomes.costs.copy()
    size, tokens = _sizes(outcomes), _tokens(outcomes, rows)
    parts = [
        _lines([size, tokens[:, k]], outcomes.costs[:, [k]], rows) for k in range(tokens.shape[1])
    ]
    return np.where(practice[:, None], np.hstack(parts), outcomes.costs)


def _sizes(outcomes: Outcomes) -> Floats:
    return np.array([len(prompt) for prompt in outcomes.prompts], dtype=np.float64)


def _tokens(outcomes: Outcomes, rows: Mask) -> Floats:
    """[N, K]: of the answers; the mean of `rows` where a file says nothing."""
    tokens = outcomes.signals.get("tokens")
    if tokens is None:
        return np.ones(outcomes.costs.shape)
    return np.where(np.isnan(tokens), np.nanmean(tokens[rows], axis=0), tokens)


def _lines(known: Sequence[Floats], costs: Floats, rows: Mask) -> Floats:
    """[N, K] of costs [N, K]: each column's least-squares line through `rows`."""
    x = np.stack([*known, np.ones(len(costs))], axis=1)
    found = x @ np.linalg.lstsq(x[rows], costs[rows], rcond=None)[0]
    return np.asarray(np.maximum(found, LEAST_COST * costs[rows].mean(axis=0)))
