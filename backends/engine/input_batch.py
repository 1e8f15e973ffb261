"""A step's `SchedulerOutput` packed into a handful of tensors.

Small and numerous things stay Python ints; tensors are built once per step. A sequence's block
table is kept between steps and only its newest blocks are rewritten, so that the cost of a step
does not grow with the context.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.engine.request import Request
from backends.engine.runner import ScheduledSequence
from backends.layers.attention import ForwardBatch


class BlockTables:
    """One row of block ids per sequence that has run, kept until its row is needed."""

    def __init__(self, *, rows: int, columns: int, block_size: int) -> None:
        """Make room for `rows` sequences of `columns` blocks; grows when more rows are needed."""
        self._block_size = block_size
        self._table = np.full((rows, columns), -1, dtype=np.int32)
        self._row_of: dict[Request, int] = {}
        self._known: dict[Request, tuple[int, int]] = {}
        """(blocks written to the row, preemptions of the sequence when they were)."""
        self._free = list(range(rows))

    def row(self, request: Request, start: int) -> npt.NDArray[np.int32]:
        """Return the sequence's up-to-date row.

        Args:
            start: First token of this step; blocks wholly before it cannot have changed since
                the last step, unless the sequence was preempted.
        """
        place = self._row_of.get(request)
        if place is None:
            place = self._take(request)
        row: npt.NDArray[np.int32] = self._table[place]
        written, preemptions = self._known[request]
        blocks = request.block_ids
        first = min(written, start // self._block_size)
        if preemptions != request.num_preemptions:
            first = 0
        if first < len(blocks):
            row[first : len(blocks)] = blocks[first:]
        self._known[request] = (len(blocks), request.num_preemptions)
        return row

    def _take(self, request: Request) -> int:
        if not self._free:
            self._drop_finished()
        if not self._free:
            rows = len(self._table)
            self._table = np.concatenate([self._table, np.full_like(self._table, -1)])
            self._free.extend(range(rows, 2 * rows))
        place = self._row_of[request] = self._free.pop()
        self._known[request] = (0, request.num_preemptions)
        return place

    def _drop_finished(self) -> None:
        for request in [r for r in self._row_of if r.is_finished]:
            self._free.append(self._row_of.pop(request))
            del self._known[request]


class InputBatch:
    """Builds one step's tensors."""

    def __init__(
        self, *, block_size: int, max_num_seqs: int, max_model_len: int, device: torch.device
    ) -> None:
        self._block_size = block_size
        self._device = device
        columns = -(-max_model_len // block_size) + 1
        self._tables = BlockTables(rows=max_num_seqs, columns=columns, block_size=block_size)

    def build(self, sequences: Sequence[ScheduledSequence]) -> tuple[ForwardBatch, Tensor | None]:
        """Pack the sequences in their order.

        Returns:
            The batch, and the packed rows whose logits are needed [R] int64, None for all of
            them: of each sequence that samples, the last num_drafts + 1.
        """
        size = self._block_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        contexts: list[int] = []
        logit_rows: list[int] = []
        max_query = max_context = 0
        for sequence in sequences:
            request, start, count = sequence.request, sequence.start, sequence.num_tokens
            end = start + count
            blocks = request.block_ids
            if count == 1 and not sequence.num_drafts:
                tokens.append(request.token_ids[start])
                positions.append(start)
                slots.append(blocks[start // size] * size + start % size)
            else:
                known = len(request.token_ids)
                tokens += request.token_ids[start:end]
                if end > known:
                    tokens += request.draft_token_ids[: end - known]
                positions += range(start, end)
                slots += [blocks[p // size] * size + p % size for p in range(start, end)]
            if sequence.samples:
                logit_rows += range(len(tokens) - sequence.num_drafts - 1, len(tokens))
            starts.append(len(tokens))
            contexts.append(end)
            max_query = max(max_query, count)
            max_context = max(max_context, end)
        columns = -(-max_context // size)
        tables = np.stack([self._tables.row(s.request, s.start)[:columns] for s in sequences])
        batch = ForwardBatch(
            token_ids=self._tensor(tokens, np.int64),
            positions=self._tensor(positions, np.int64),
            slot_mapping=self._tensor(slots, np.int64),
            block_tables=torch.from_numpy(tables).to(self._device),
            query_start_lens=self._tensor(starts, np.int32),
            context_lens=self._tensor(contexts, np.int32),
            max_query_len=max_query,
            max_context_len=max_context,
        )
        if len(logit_rows) == len(tokens):
            return batch, None
        return batch, self._tensor(logit_rows, np.int64)

    def _tensor(self, values: list[int], dtype: npt.DTypeLike) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=dtype)).to(self._device)
