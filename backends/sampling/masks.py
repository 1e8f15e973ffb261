"""Grammars' masks over a batch of logits: a bit a token, made on the host, applied where they lie.

On a GPU they are made while the forward pass is still under way, since nothing waits for it before.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.sampling.grammar import Bits
from backends.sampling.state import SequenceRows
from backends.transfer import to_device

_POWERS: Final = np.array([1 << bit for bit in range(8)], dtype=np.uint8)


class GrammarMasks:
    """Which tokens each constrained row of a step may take; the other rows are not touched."""

    def __init__(self, sequences: Sequence[SequenceRows]) -> None:
        """Ask every matcher.

        Args:
            sequences: In the order of the rows; at least one has a matcher.

        Raises:
            GrammarError: one of them cannot go on.
        """
        parts: list[Bits] = []
        rows: list[int] = []
        first = 0
        for sequence in sequences:
            count = len(sequence.drafts) + 1
            if sequence.matcher is not None:
                parts.append(sequence.matcher.masks(sequence.outputs, sequence.drafts))
                rows += range(first, first + count)
            first += count
        self._bits = np.concatenate(parts)
        self._place = {row: place for place, row in enumerate(rows)}

    def only_allows(self, row: int, ids: npt.NDArray[np.int64]) -> bool:
        """Whether a row may take none but these tokens."""
        bits = self._bits[self._place[row]].view(np.uint8).copy()
        np.bitwise_and.at(bits, ids // 8, ~_POWERS[ids % 8])
        return not bits.any()

    def apply(self, logits: Tensor) -> None:
        """Set the logits [R, V] of what is not allowed to minus infinity."""
        octets, powers, rows = to_device(
            (self._bits.view(np.uint8), _POWERS, np.array(list(self._place), dtype=np.int64)),
            logits.device,
        )
        forbidden = ((octets[:, :, None] & powers) == 0).flatten(1)[:, : logits.shape[1]]
        known = forbidden.shape[1]
        if known < logits.shape[1]:  # Columns that pad the vocabulary stand for nothing.
            logits[rows, known:] = -torch.inf
        kept = logits[rows, :known].masked_fill_(forbidden, -torch.inf)
        logits[rows, :known] = kept
