"""Adam in NumPy, for the small networks that are fitted here.

Source: Kingma, Ba 2015, "Adam: A Method for Stochastic Optimization".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
MEAN, SQUARE = 0.9, 0.999
"""What is kept of a gradient's mean, and of its square's, at each step."""
LEAST = 1e-8


class Adam:
    """Parameters in float32, changed in place.

    Args:
        paces: by parameter, times the step; a number or an array that fits its shape.
    """

    def __init__(self, values: Sequence[Floats], paces: Sequence[Any] | None = None) -> None:
        self.values = [value.astype(np.float32) for value in values]
        self._moments = [(np.zeros_like(v), np.zeros_like(v)) for v in self.values]
        self._paces = [np.float32(pace) for pace in paces or [1.0] * len(values)]
        self._count = 0

    def step(self, gradients: Sequence[Floats], rate: float) -> None:
        """One step against the gradients."""
        self._count += 1
        rate *= float(np.sqrt(1 - SQUARE**self._count) / (1 - MEAN**self._count))
        for value, (mean, square), gradient, pace in zip(
            self.values, self._moments, gradients, self._paces, strict=True
        ):
            slope = gradient.astype(np.float32, copy=False)
            mean += np.float32(1 - MEAN) * (slope - mean)
            square += np.float32(1 - SQUARE) * (slope * slope - square)
            value -= np.float32(rate) * pace * mean / (np.sqrt(square) + np.float32(LEAST))
