"""Counter-based randomness: a number is a function of (seed, place), never of what ran before.

That makes an answer with a seed the same whatever else is in the batch, after a preemption, and
with speculation on or off.

Source: Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators" (SplitMix64).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_MANTISSA_BITS: Final = 52
"""One fewer than a double holds: a draw times a total then always rounds below the total."""


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def stream_key(seed: int) -> int:
    """Turn any integer seed into the 64-bit key of its stream; neighbouring seeds share nothing."""
    word = np.array([seed % 2**64], dtype=np.uint64)
    return int(_mix(_mix(word + _GOLDEN))[0])


def uniforms(
    keys: npt.NDArray[np.uint64], places: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """Draw one number in [0, 1) for each (stream key, place)."""
    words = _mix(keys + (places + np.uint64(1)) * _GOLDEN)
    fractions = words >> np.uint64(64 - _MANTISSA_BITS)
    return fractions.astype(np.float64) * 2.0**-_MANTISSA_BITS
