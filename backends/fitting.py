"""A linear model with no negative coefficient, fitted as observations come in."""

import math
from collections.abc import Sequence
from typing import Final

_EARLY: Final = 64
_REFIT: Final = 64
_SWEEPS: Final = 12
_MOST_OFF: Final = 4.0


class LinearFit:
    """Least squares of the relative error with exponential forgetting, held near a prior.

    Relative to what was expected, not to what was found, and at most a factor of four from it: a
    total that is far too small or too large (a machine that did something else meanwhile, events
    that were heard late) counts as one observation, no more. Where that happens often, what is off
    by more than `doubtful` counts in proportion less (Huber 1964, "Robust Estimation of a Location
    Parameter").

    The prior counts where the observations tell two terms not apart; it says only how the
    coefficients relate, their scale comes from the first observation.
    """

    def __init__(
        self,
        prior: Sequence[float],
        *,
        prior_observations: float | Sequence[float] = 0.01,
        doubtful: float = math.inf,
        memory: int = 1_000,
    ) -> None:
        """Args:
        prior: one positive number per term, up to a common factor.
        prior_observations: how many observations it is worth, of each term or of all alike.
        doubtful: relative error.
        memory: observations, of which the older ones are forgotten.
        """
        self.changes = 0
        """Counts up when the coefficients have changed."""
        self._prior = tuple(prior)
        if isinstance(prior_observations, float):
            prior_observations = [prior_observations] * len(self._prior)
        self._worth = tuple(prior_observations)
        self._doubtful = doubtful
        self._keep = 1 - 1 / memory
        self._scale = 0.0
        """Of the prior's unit; 0: nothing observed yet."""
        self._factors = [1.0] * len(self._prior)
        """Coefficients over the prior's."""
        self._products = [[0.0] * len(self._prior) for _ in self._prior]
        self._targets = [0.0] * len(self._prior)
        self._seen = 0
        self._waiting: list[tuple[Sequence[float], float]] = []
        """Observations since the last fit: between two nobody needs their sums."""

    @property
    def fitted(self) -> bool:
        """Whether anything was observed."""
        return self._scale > 0

    def coefficients(self) -> tuple[float, ...]:
        """The present fit; before the first observation, the prior."""
        scale = self._scale or 1.0
        return tuple(
            scale * prior * factor for prior, factor in zip(self._prior, self._factors, strict=True)
        )

    def observe(self, terms: Sequence[float], total: float) -> None:
        """`total` was found where the terms had these sizes."""
        if total <= 0 or not any(terms):
            return
        self._waiting.append((terms, total))
        self._seen += 1
        if self._seen < _EARLY or self._seen % _REFIT == 0:
            for each in self._waiting:
                self._absorb(*each)
            self._waiting.clear()
            self._fit()

    def _absorb(self, terms: Sequence[float], total: float) -> None:
        parts = [prior * term for prior, term in zip(self._prior, terms, strict=True)]
        if not self._scale:
            self._scale = total / sum(parts)
        expected = self._scale * sum(
            part * factor for part, factor in zip(parts, self._factors, strict=True)
        )
        if expected <= 0:  # all of these terms were found to be worth nothing
            expected = total
        found = min(max(total / expected, 1 / _MOST_OFF), _MOST_OFF)
        off = abs(found - 1)
        weight = 1.0 if off <= self._doubtful else self._doubtful / off
        x = [part * self._scale / expected for part in parts]
        for row, own in zip(self._products, x, strict=True):
            for place, other in enumerate(x):
                row[place] = row[place] * self._keep + weight * own * other
        self._targets = [
            was * self._keep + weight * own * found
            for was, own in zip(self._targets, x, strict=True)
        ]

    def _fit(self) -> None:
        """Coordinate descent on the normal equations, no factor below zero."""
        factors, everywhere = self._factors, range(len(self._factors))
        for _ in range(_SWEEPS):
            for place, row in enumerate(self._products):
                others = sum(row[other] * factors[other] for other in everywhere if other != place)
                # The prior's observations say: a factor of 1.
                worth = self._worth[place]
                target = self._targets[place] + worth - others
                factors[place] = max(0.0, target / (row[place] + worth))
        self.changes += 1
