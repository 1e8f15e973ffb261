"""A step's `SchedulerOutput` packed into a handful of tensors.

Small and numerous things stay Python ints until a few arrays are made of them at once. A sequence's
block table is kept between steps and only new blocks are written, so that the cost of a step does
not grow with the context.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from backends.engine.request import Request
from backends.engine.runner import ScheduledSequence
from backends.layers.attention import ForwardBatch
from backends.transfer import to_device

_NO_ROWS: Final = np.empty(0, dtype=np.int64)


class BlockTables:
    """One row of block ids per sequence, kept until the sequence is finished and its row needed."""

    def __init__(self, *, rows: int, columns: int) -> None:
        """Make room for `rows` sequences of `columns` blocks; grows when more rows are needed."""
        self.table = np.full((rows, columns), -1, dtype=np.int32)
        self._kept: dict[Request, list[int]] = {}
        """[row, blocks written to it, the sequence's preemptions when they were]."""
        self._free = list(range(rows))

    def row(self, request: Request) -> int:
        """Return the index of the sequence's row, brought up to date.

        `block_ids` only grows between two preemptions, so only what is new is written.
        """
        kept = self._kept.get(request)
        if kept is None:
            kept = self._kept[request] = [self._take(), 0, request.num_preemptions]
        row, written, preemptions = kept
        blocks = request.block_ids
        if preemptions != request.num_preemptions:
            written, kept[2] = 0, request.num_preemptions
        if written != len(blocks):
            self.table[row, written : len(blocks)] = blocks[written:]
            kept[1] = len(blocks)
        return row

    def _take(self) -> int:
        if not self._free:
            for request in [r for r in self._kept if r.is_finished]:
                self._free.append(self._kept.pop(request)[0])
        if not self._free:
            rows = len(self.table)
            self.table = np.concatenate([self.table, np.full_like(self.table, -1)])
            self._free.extend(range(rows, 2 * rows))
        return self._free.pop()


class _Decodes:
    """One token of each of the same sequences, step after step, on the CPU.

    The tensors share the arrays' memory, which is written anew for every step: making a tensor
    costs as much as filling it.
    """

    def __init__(self, requests: Sequence[Request], columns: int, block_size: int) -> None:
        count = len(requests)
        self._requests = list(requests)
        self._blocks = [request.block_ids for request in requests]
        self._written = [0] * count
        self._size = block_size
        self._tokens, self._positions, self._slots = np.empty((3, count), dtype=np.int64)
        self._ends = np.empty(count, dtype=np.int32)
        self._tables = np.full((count, columns), -1, dtype=np.int32)
        self._batch = ForwardBatch(
            token_ids=torch.from_numpy(self._tokens),
            positions=torch.from_numpy(self._positions),
            slot_mapping=torch.from_numpy(self._slots),
            block_tables=torch.from_numpy(self._tables),
            query_start_lens=torch.from_numpy(np.arange(count + 1, dtype=np.int32)),
            context_lens=torch.from_numpy(self._ends),
            max_query_len=1,
            max_context_len=0,
            adapters=_adapters(requests, torch.device("cpu")),
        )

    def fits(self, sequences: Sequence[ScheduledSequence]) -> bool:
        """Whether a step is one token of each of these sequences, in their old blocks."""
        if len(sequences) != len(self._requests):
            return False
        for sequence, request, blocks in zip(sequences, self._requests, self._blocks, strict=True):
            # A sequence that lost its blocks has a new list of them.
            if (
                sequence.request is not request
                or sequence.num_tokens != 1
                or request.block_ids is not blocks
            ):
                return False
        return True

    def fill(self, sequences: Sequence[ScheduledSequence]) -> ForwardBatch:
        """Write a step that fits."""
        size, longest = self._size, 0
        for row, sequence in enumerate(sequences):
            start, blocks = sequence.start, self._blocks[row]
            if (written := self._written[row]) != len(blocks):
                self._tables[row, written : len(blocks)] = blocks[written:]
                self._written[row] = len(blocks)
            self._tokens[row] = sequence.request.token_ids[start]
            self._positions[row] = start
            self._slots[row] = blocks[start // size] * size + start % size
            self._ends[row] = start + 1
            if start >= longest:
                longest = start + 1
        return self._batch._replace(max_context_len=longest)


class InputBatch:
    """Builds one step's tensors; on the CPU they are good until the next is built."""

    def __init__(
        self, *, block_size: int, max_num_seqs: int, max_model_len: int, device: torch.device
    ) -> None:
        self._block_size = block_size
        self._device = device
        self._columns = -(-max_model_len // block_size) + 1
        self.tables = BlockTables(rows=max_num_seqs, columns=self._columns)
        self._decodes: _Decodes | None = None

    def build(self, sequences: Sequence[ScheduledSequence]) -> tuple[ForwardBatch, Tensor | None]:
        """Pack the sequences in their order.

        Returns:
            The batch, and the packed rows whose logits are needed [R] int64, None for all of
            them: of each sequence that samples, the last num_drafts + 1.
        """
        if self._device.type == "cpu":
            decodes = self._decodes
            if decodes is not None and decodes.fits(sequences):
                return decodes.fill(sequences), None
            self._decodes = None
            if all(s.num_tokens == 1 and s.samples for s in sequences):
                requests = [sequence.request for sequence in sequences]
                self._decodes = _Decodes(requests, self._columns, self._block_size)
                return self._decodes.fill(sequences), None
        return self._pack(sequences)

    def _pack(self, sequences: Sequence[ScheduledSequence]) -> tuple[ForwardBatch, Tensor | None]:
        size = self._block_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        query_starts, ends = [0], []
        logit_rows: list[int] = []
        longest_query = 1
        for sequence in sequences:
            request, start, count = sequence.request, sequence.start, sequence.num_tokens
            blocks, end = request.block_ids, start + count
            ends.append(end)
            if count == 1:
                tokens.append(request.token_ids[start])
                positions.append(start)
                slots.append(blocks[start // size] * size + start % size)
            else:
                drafts = sequence.num_drafts
                tokens += request.token_ids[start : end - drafts]
                tokens += request.draft_token_ids[:drafts]
                positions += range(start, end)
                slots += [blocks[p // size] * size + p % size for p in range(start, end)]
                longest_query = max(longest_query, count)
            query_starts.append(len(tokens))
            if sequence.samples:
                logit_rows += range(len(tokens) - sequence.num_drafts - 1, len(tokens))
        longest = max(ends)
        rows = [self.tables.row(sequence.request) for sequence in sequences]
        every_row = len(logit_rows) == len(tokens)
        per_token, tables, starts, context_lens, chosen = to_device(
            (
                np.array((tokens, positions, slots), dtype=np.int64),
                self.tables.table[rows, : -(-longest // size)],
                np.array(query_starts, dtype=np.int32),
                np.array(ends, dtype=np.int32),
                _NO_ROWS if every_row else np.array(logit_rows, dtype=np.int64),
            ),
            self._device,
        )
        batch = ForwardBatch(
            token_ids=per_token[0],
            positions=per_token[1],
            slot_mapping=per_token[2],
            block_tables=tables,
            query_start_lens=starts,
            context_lens=context_lens,
            max_query_len=longest_query,
            max_context_len=longest,
            adapters=_adapters([sequence.request for sequence in sequences], self._device),
        )
        return batch, None if every_row else chosen


def _adapters(requests: Sequence[Request], device: torch.device) -> Tensor | None:
    """Each sequence's adapter [S] int32; None where nobody has one."""
    chosen = [request.adapter for request in requests]
    if max(chosen, default=-1) < 0:
        return None
    return to_device((np.array(chosen, dtype=np.int32),), device)[0]
