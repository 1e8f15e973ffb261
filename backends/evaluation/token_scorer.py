"""Log-probabilities of given tokens under a loaded model, many sequences in one forward pass."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.engine.kv_cache import allocate
from backends.evaluation.candidate import TOP
from backends.layers.attention import ForwardBatch
from backends.models.registry import Model

BLOCK_SIZE: Final = 16
BATCH_TOKENS: Final = 4096
LOGIT_BYTES: Final = 2**24
"""Of fp32 logits at once."""


class Scored(NamedTuple):
    """Of the tokens of one sequence from `first` on."""

    logprobs: NDArray[np.float64]
    margins: NDArray[np.float64]
    """How far the likeliest other token lies below; negative where one is likelier."""
    entropies: NDArray[np.float64]
    """Nats, at each place; what is beyond the likeliest TOP tokens counts as one more."""


class TokenScorer:
    """Reads sequences whole, as a prefill does; the same weights and kernels that serve."""

    def __init__(self, model: Model, *, device: torch.device, kv_dtype: torch.dtype) -> None:
        self._model = model
        self._device = device
        self._kv_dtype = kv_dtype

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[Scored]:
        """Score the tokens of each sequence from place `firsts[i]` (at least 1) to its end."""
        found: list[Scored] = []
        for batch in _batches(sequences, firsts):
            hidden = self._forward([ids for ids, _ in batch])
            rows: list[int] = []
            targets: list[int] = []
            lengths: list[int] = []
            start = 0
            for ids, first in batch:
                rows += range(start + first - 1, start + len(ids) - 1)
                targets += ids[first:]
                lengths.append(len(ids) - first)
                start += len(ids)
            picked = self._pick(hidden[rows], torch.tensor(targets, dtype=torch.int64))
            ends = np.cumsum(lengths)[:-1]
            found += map(Scored, *(np.split(column, ends) for column in picked))
        return found

    def _forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states [T, H] of whole sequences, each in blocks of its own."""
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int32)
        blocks = -(-lengths // BLOCK_SIZE)
        ends = np.cumsum(blocks)
        tables = np.full((len(sequences), int(blocks.max())), -1, dtype=np.int32)
        slots = []
        for row, (end, count) in enumerate(zip(ends, blocks, strict=True)):
            tables[row, :count] = np.arange(end - count, end)
            slots.append((end - count) * BLOCK_SIZE + np.arange(lengths[row]))
        caches = allocate(
            self._model.config,
            num_blocks=int(ends[-1]),
            block_size=BLOCK_SIZE,
            dtype=self._kv_dtype,
            device=self._device,
        )
        batch = ForwardBatch(
            token_ids=self._tensor(np.concatenate([np.array(s, np.int64) for s in sequences])),
            positions=self._tensor(np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])),
            slot_mapping=self._tensor(np.concatenate(slots).astype(np.int64)),
            block_tables=self._tensor(tables),
            query_start_lens=self._tensor(
                np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
            ),
            context_lens=self._tensor(lengths),
            max_query_len=int(lengths.max()),
            max_context_len=int(lengths.max()),
        )
        return self._model.forward(batch, caches)

    def _pick(self, hidden: Tensor, targets: Tensor) -> Scored:
        """Log-probabilities and margins [R] of the targets after hidden states [R, H]."""
        rows = max(1, LOGIT_BYTES // (4 * self._model.config.vocab_size))
        logprobs, margins, entropies = [], [], []
        for start in range(0, len(targets), rows):
            logits = self._model.logits(hidden[start : start + rows])
            wanted = targets[start : start + rows, None].to(logits.device)
            chosen = logits.gather(1, wanted)
            total = logits.logsumexp(1, keepdim=True)
            logprobs.append((chosen - total)[:, 0])
            top = logits.topk(min(TOP, logits.shape[1]), dim=1).values - total
            rest = (1 - top.exp().sum(1)).clamp_min(0)
            entropies.append(-(top.exp() * top).sum(1) - torch.special.xlogy(rest, rest))
            best_other = logits.scatter_(1, wanted, -torch.inf).amax(1)
            margins.append(chosen[:, 0] - best_other)
        columns = (logprobs, margins, entropies)
        return Scored(*(torch.cat(column).double().cpu().numpy() for column in columns))

    def _tensor(self, values: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _batches(
    sequences: Sequence[Sequence[int]], firsts: Sequence[int]
) -> Iterator[list[tuple[Sequence[int], int]]]:
    """Group sequences in their order, so that a group has at most `BATCH_TOKENS` tokens."""
    batch: list[tuple[Sequence[int], int]] = []
    size = 0
    for ids, first in zip(sequences, firsts, strict=True):
        if batch and size + len(ids) > BATCH_TOKENS:
            yield batch
            batch, size = [], 0
        batch.append((ids, first))
        size += len(ids)
    if batch:
        yield batch
