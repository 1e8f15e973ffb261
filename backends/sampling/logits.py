"""Edits of the logits that requests ask for, before temperature: bans, biases, penalties, grammars.

All are sparse: cost grows with the tokens a request names or holds, not with the vocabulary; and a
grammar's mask, one bit a token, touches the rows of its own answer alone.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.sampling.masks import GrammarMasks
from backends.sampling.state import SequenceRows

_Ids = npt.NDArray[np.int64]
_Values = npt.NDArray[np.float32]


def edit_logits(logits: Tensor, sequences: Sequence[SequenceRows]) -> None:
    """Apply min_tokens, logit_bias, the penalties and grammars in place, in vLLM's order.

    A grammar has the last word: where it only lets an answer end, `min_tokens` does not hold it.

    Args:
        logits: [R, V] fp32; the rows of each sequence follow each other.
        sequences: In the order of the rows.
    """
    first = 0
    bans: list[tuple[int, _Ids]] = []
    biases: list[tuple[int, _Ids, _Values]] = []
    penalties: list[tuple[int, _Ids, _Values, tuple[float, float, float]]] = []
    masks = GrammarMasks(sequences) if any(s.matcher for s in sequences) else None
    for sequence in sequences:
        state = sequence.state
        rows = len(sequence.drafts) + 1
        if state.edits_logits:
            for i in range(rows):
                if len(sequence.outputs) + i < state.min_tokens and not (
                    masks and sequence.matcher and masks.only_allows(first + i, state.end_ids)
                ):
                    bans.append((first + i, state.end_ids))
                if len(state.bias_ids):
                    biases.append((first + i, state.bias_ids, state.bias_values))
            penalties.extend(_penalties(sequence, first))
        first += rows
    if bans:
        rows_, ids = _places(bans, logits)
        logits[rows_, ids] = -torch.inf
    if biases:
        rows_, ids = _places(biases, logits)
        values = np.concatenate([bias[2] for bias in biases])
        logits.index_put_((rows_, ids), _tensor(values, logits), accumulate=True)
    if penalties:
        _penalise(logits, penalties)
    if masks is not None:
        masks.apply(logits)


def _penalties(
    sequence: SequenceRows, first: int
) -> list[tuple[int, _Ids, _Values, tuple[float, float, float]]]:
    """List the row, tokens, counts and strengths of each of a sequence's penalised rows."""
    counts, params = sequence.state.counts, sequence.state.params
    if counts is None:
        return []
    counts.update(sequence.outputs)
    strengths = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
    return [
        (first + i, *counts.with_drafts(sequence.drafts[:i]), strengths)
        for i in range(len(sequence.drafts) + 1)
    ]


def _penalise(
    logits: Tensor, penalties: Sequence[tuple[int, _Ids, _Values, tuple[float, float, float]]]
) -> None:
    """Repetition scales tokens of prompt and answer; frequency and presence lower the answer's."""
    rows, ids = _places(penalties, logits)
    counts = _tensor(np.concatenate([row[2] for row in penalties]), logits)
    lengths = [len(row[1]) for row in penalties]
    strengths = np.asarray([row[3] for row in penalties], dtype=np.float32)
    repetition, frequency, presence = _tensor(np.repeat(strengths, lengths, axis=0), logits).T
    values = logits[rows, ids]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[rows, ids] = values - frequency * counts - presence * (counts > 0)


def _places(
    edits: Sequence[tuple[int, _Ids, *tuple[object, ...]]], logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the row and the token id of every edited logit."""
    rows = list(chain.from_iterable([edit[0]] * len(edit[1]) for edit in edits))
    ids = np.concatenate([edit[1] for edit in edits])
    return _tensor(np.asarray(rows, dtype=np.int64), logits), _tensor(ids, logits)


def _tensor(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)
