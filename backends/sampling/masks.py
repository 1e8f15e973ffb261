"""Grammars' masks over a batch of logits: a bit a token, made on the host, applied where they lie.

On a GPU they are made while the forward pass is still under way, since nothing waits for it before.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.sampling.grammar import Matcher
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
        rows: list[int] = []
        asked: list[tuple[SequenceRows, Matcher, int]] = []
        first = 0
        for sequence in sequences:
            count = len(sequence.drafts) + 1
            if sequence.matcher is not None:
                asked.append((sequence, sequence.matcher, len(rows)))
                rows += range(first, first + count)
            first += count
        self._rows = rows
        self._bits = np.full((len(rows), asked[0][1].words), -1, dtype=np.int32)
        for sequence, matcher, place in asked:
            end = place + len(sequence.drafts) + 1
            matcher.fill(sequence.outputs, sequence.drafts, self._bits[place:end])

    def only_allows(self, row: int, ids: npt.NDArray[np.int64]) -> bool:
        """Whether a row may take none but these tokens."""
        bits = self._bits[self._rows.index(row)].view(np.uint8).copy()
        np.bitwise_and.at(bits, ids // 8, ~_POWERS[ids % 8])
        return not bits.any()

    def apply(self, logits: Tensor) -> None:
        """Set the logits [R, V] of what is not allowed to minus infinity.

        Columns behind the vocabulary, which pad it, are never allowed.
        """
        if logits.device.type == "cpu":
            self.apply_in_numpy(logits.numpy())
        else:
            self.apply_beside(logits)

    def apply_in_numpy(self, logits: npt.NDArray[np.float32]) -> None:
        """Row by row: a tenth of what torch takes on a CPU for as little as this."""
        bits = np.unpackbits(self._bits.view(np.uint8), axis=1, bitorder="little")
        forbidden = (bits == 0)[:, : logits.shape[1]]
        known = forbidden.shape[1]
        for place, row in enumerate(self._rows):
            np.copyto(logits[row, :known], -np.inf, where=forbidden[place])
            logits[row, known:] = -np.inf

    def apply_beside(self, logits: Tensor) -> None:
        """In one go, sending bits to the device instead of numbers."""
        octets, powers, rows = to_device(
            (self._bits.view(np.uint8), _POWERS, np.array(self._rows, dtype=np.int64)),
            logits.device,
        )
        forbidden = ((octets[:, :, None] & powers) == 0).flatten(1)[:, : logits.shape[1]]
        known = forbidden.shape[1]
        logits[rows, known:] = -torch.inf
        logits[rows, :known] = logits[rows, :known].masked_fill_(forbidden, -torch.inf)
