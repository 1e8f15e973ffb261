"""The parameters of `kernels.sampling.sample`, a column of numbers for each, one row a draw.

Where logits lie on a GPU, tokens are drawn there. A seed gives the same answer in any batch, as on
the CPU, though not the CPU's answer: noise for every token suits a GPU, one number per row a CPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from backends.sampling.state import SamplingState
from backends.transfer import to_device
from kernels.sampling import sample


class DrawColumns(NamedTuple):
    """What does not change from one step to the next while the rows stay the same; R rows."""

    temperature: npt.NDArray[np.float32]
    """0: the likeliest token."""
    top_k: npt.NDArray[np.int32]
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    seeds: npt.NDArray[np.int64]


def draw_columns(states: Sequence[SamplingState], vocabulary: int) -> DrawColumns:
    """Read the rows' parameters; top_k of `vocabulary` keeps all."""
    params = [state.params for state in states]
    heat = [0.0 if s.greedy else s.params.temperature for s in states]
    top_k = [min(p.top_k, vocabulary) if p.top_k > 0 else vocabulary for p in params]
    return DrawColumns(
        temperature=np.array(heat, dtype=np.float32),
        top_k=np.array(top_k, dtype=np.int32),
        top_p=np.array([p.top_p for p in params], dtype=np.float32),
        min_p=np.array([p.min_p for p in params], dtype=np.float32),
        seeds=np.array([state.key for state in states], dtype=np.uint64).view(np.int64),
    )


def draw(logits: Tensor, states: Sequence[SamplingState], places: Sequence[int]) -> Tensor:
    """Return one token per row [R] of logits [R, V], drawn where they lie."""
    columns = draw_columns(states, logits.shape[1])
    moved = to_device((*columns, np.asarray(places, dtype=np.int64)), logits.device)
    return sample(logits, *moved)
