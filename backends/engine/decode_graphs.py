"""Decode steps as recorded graphs: one replay instead of hundreds of launches.

A graph reads and writes the same memory at every replay, and has one shape. So a step's inputs lie
in one buffer that is copied to the device in one go, steps are padded to a bucket of rows, and
there are graphs for a few lengths of context. A padding row stores nothing, sees nothing, and its
token is thrown away.

A row's token may be the one that the last launch sampled, wherever the host is by then: it is read
on the device. So a step can be launched before the tokens of the one before it are known.

Guesses are verified by graphs of their own, of a fixed number of queries a sequence: those of a
sequence with fewer guesses stand at the end, behind queries that store nothing. Graphs that apply
penalties are recorded when the first such request comes.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.engine.input_batch import BlockTables
from backends.engine.penalty_table import PenaltyTable
from backends.engine.request import Request
from backends.layers.attention import ForwardBatch, LayerCache
from backends.models.registry import Model
from backends.sampling.device import DrawColumns, draw_columns
from backends.sampling.state import SamplingState
from kernels.sampling import sample

Step = Callable[[], None]
Capture = Callable[[Step], Step]
"""Runs a step to warm it up, records it, and returns what replays it."""

_SHORTEST_TIER: Final = 1024
_TIER_GROWTH: Final = 4
_IN_FLIGHT: Final = 3
"""One being waited for, one launched ahead in vain, one launched ahead of the next."""


class DecodeRow(NamedTuple):
    """One sequence's next token."""

    request: Request
    start: int
    """Place of the token in its sequence, whose KV this step computes."""
    source: int = -1
    """Row of the last launch whose sample is the token; -1: it is known."""
    drafts: Sequence[int] = ()
    """Guesses of the tokens after it, to be computed and sampled after as well."""


class Shape(NamedTuple):
    """What a graph is recorded for."""

    bucket: int
    """Sequences."""
    tier: int
    """Longest context, tokens."""
    queries: int = 1
    """Of each sequence: its newest token and guesses."""
    penalised: bool = False

    @property
    def rows(self) -> int:
        """Queries of all sequences, each of which samples a token."""
        return self.bucket * self.queries


class StaticInputs(NamedTuple):
    """Views of one buffer; R rows and S sequences of a bucket, M blocks of a tier."""

    token_ids: Tensor
    """[R] int64."""
    sources: Tensor
    positions: Tensor
    slot_mapping: Tensor
    seeds: Tensor
    places: Tensor
    holders: Tensor
    """[R] int64: rows of the tables of penalties."""
    temperature: Tensor
    """[R] fp32."""
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    top_k: Tensor
    """[R] int32."""
    context_lens: Tensor
    """[S] int32."""
    block_tables: Tensor
    """[S, M] int32."""


_PER_ROW: Final = (torch.int64,) * 7 + (torch.float32,) * 6 + (torch.int32,)


class Launched(Protocol):
    """A step on its way."""

    @property
    def rows(self) -> Sequence[DecodeRow]:
        """What it computes."""
        ...

    def tokens(self) -> list[int]:
        """Wait for the sampled tokens: of each row the next one, then those after its guesses."""
        ...


class CudaCapture:
    """Records with CUDA; all graphs share one pool of memory, for they never run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Compile and warm up beside the current stream, then record."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        return graph.replay


class DecodeGraphs:
    """The graphs of one model, recorded when a shape first comes up or by `prepare`."""

    def __init__(
        self,
        model: Model,
        caches: Sequence[LayerCache],
        tables: BlockTables,
        *,
        max_rows: int,
        block_size: int,
        max_model_len: int,
        device: torch.device,
        capture: Capture,
        most_drafts: int = 0,
    ) -> None:
        self._model = model
        self._caches = caches
        self._tables = tables
        self._block_size = block_size
        self._device = device
        self._capture = capture
        self.buckets = row_buckets(max_rows)
        self.tiers = context_tiers(max_model_len, block_size)
        self.queries = sorted({1, 1 + most_drafts})
        largest = Shape(self.buckets[-1], self.tiers[-1], self.queries[-1])
        size = _bytes(largest, self.tiers[-1] // block_size)
        self._penalties = PenaltyTable(model.config.vocab_size, max_rows, device)
        self._static = torch.zeros(size, dtype=torch.uint8, device=device)
        # Of each as many as launches that may be under way when another is filled in.
        self._staged = [_host_zeros(size, torch.uint8, device) for _ in range(_IN_FLIGHT)]
        self._answers = [_host_zeros(largest.rows, torch.int64, device) for _ in range(_IN_FLIGHT)]
        self._turn = 0
        self._tokens = torch.zeros(largest.rows, dtype=torch.int64, device=device)
        starts = torch.arange(self.buckets[-1] + 1, dtype=torch.int32, device=device)
        self._starts = {queries: starts * queries for queries in self.queries}
        self._replays: dict[Shape, Step] = {}
        self._states: Sequence[SamplingState] = ()
        self._columns: DrawColumns | None = None

    @property
    def max_rows(self) -> int:
        """Most sequences of one launch."""
        return self.buckets[-1]

    @torch.inference_mode()
    def prepare(self) -> None:
        """Record every shape without penalties now, so that no request waits for it."""
        for queries in self.queries:
            for tier in self.tiers:
                for bucket in reversed(self.buckets):
                    self._replay(Shape(bucket, tier, queries))

    def launch(self, rows: Sequence[DecodeRow], states: Sequence[SamplingState]) -> Launched:
        """Start a decode step; returns at once.

        Args:
            rows: One to `max_rows`. Where a row has a source, the last launch sampled its token.
            states: The rows' sampling parameters. None of them edits logits but by penalties, and
                those that do have no guesses beside them.
        """
        shape = self._shape_for(rows, states)
        replay = self._replay(shape)
        columns = shape.tier // self._block_size
        self._turn = (self._turn + 1) % _IN_FLIGHT
        staged = self._staged[self._turn]
        self._fill(_views(staged, shape, columns), shape, rows, states)
        size = _bytes(shape, columns)
        self._static[:size].copy_(staged[:size], non_blocking=True)
        replay()
        return _Answer(rows, shape.queries, self._tokens, self._answers[self._turn])

    def _shape_for(self, rows: Sequence[DecodeRow], states: Sequence[SamplingState]) -> Shape:
        longest = 1 + max(row.start + len(row.drafts) for row in rows)
        queries = 1 + max(len(row.drafts) for row in rows)
        return Shape(
            bucket=next(size for size in self.buckets if size >= len(rows)),
            tier=next(size for size in self.tiers if size >= longest),
            queries=next(size for size in self.queries if size >= queries),
            penalised=any(state.penalised for state in states),
        )

    def _replay(self, shape: Shape) -> Step:
        replay = self._replays.get(shape)
        if replay is None:
            inputs = _views(self._static, shape, shape.tier // self._block_size)
            for name, value in _PADDING.items():
                getattr(inputs, name).fill_(value)
            replay = self._capture(lambda: self._step(inputs, shape))
            self._replays[shape] = replay
        return replay

    def _step(self, inputs: StaticInputs, shape: Shape) -> None:
        """What a graph records: tokens in, one forward pass, tokens out."""
        sampled = self._tokens[inputs.sources.clamp(min=0)]
        token_ids = torch.where(inputs.sources >= 0, sampled, inputs.token_ids)
        batch = ForwardBatch(
            token_ids=token_ids,
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            block_tables=inputs.block_tables,
            query_start_lens=self._starts[shape.queries][: shape.bucket + 1],
            context_lens=inputs.context_lens,
            max_query_len=shape.queries,
            max_context_len=shape.tier,
        )
        logits = self._model.step(batch, self._caches, None)
        if shape.penalised:
            strengths = (inputs.repetition, inputs.frequency, inputs.presence)
            self._penalties.apply(logits, inputs.holders, token_ids, inputs.places, strengths)
        tokens = sample(
            logits,
            inputs.temperature,
            inputs.top_k,
            inputs.top_p,
            inputs.min_p,
            inputs.seeds,
            inputs.places,
        )
        self._tokens[: shape.rows].copy_(tokens)

    def _fill(
        self,
        inputs: StaticInputs,
        shape: Shape,
        rows: Sequence[DecodeRow],
        states: Sequence[SamplingState],
    ) -> None:
        """Write a step's rows; what is left of the bucket becomes padding."""
        if states != self._states or self._columns is None:
            self._states = list(states)
            self._columns = draw_columns(states, self._model.config.vocab_size)
        count, size, columns = len(rows), self._block_size, self._columns
        tables = self._tables.table[[self._tables.row(row.request) for row in rows]]
        width = min(tables.shape[1], inputs.block_tables.shape[1])
        inputs.block_tables.numpy()[:count, :width] = tables[:, :width]
        starts = np.array([row.start for row in rows], dtype=np.int64)
        lengths = np.array([1 + len(row.drafts) for row in rows], dtype=np.int64)
        # Each sequence's rows are the last of its queries; first of them is its newest token.
        owner = np.repeat(np.arange(count), lengths)
        ahead = np.arange(len(owner)) - np.repeat(lengths.cumsum() - lengths, lengths)
        places = owner * shape.queries + shape.queries - lengths[owner] + ahead
        positions = starts[owner] + ahead
        known = [0 if r.source >= 0 else r.request.token_ids[r.start] for r in rows]
        tokens = [t for first, r in zip(known, rows, strict=True) for t in (first, *r.drafts)]
        firsts = np.array([row.start + 1 - row.request.num_prompt_tokens for row in rows])
        values: dict[str, npt.ArrayLike] = {
            "token_ids": tokens,
            "sources": [source for r in rows for source in (r.source, *[-1] * len(r.drafts))],
            "positions": positions,
            "slot_mapping": tables[owner, positions // size].astype(np.int64) * size
            + positions % size,
            "seeds": columns.seeds[owner],
            "places": firsts[owner] + ahead,
            "temperature": columns.temperature[owner],
            "top_p": columns.top_p[owner],
            "min_p": columns.min_p[owner],
            "top_k": columns.top_k[owner],
        }
        if shape.penalised:
            values |= self._penalties.columns(rows, states, firsts)
        for name, padding in _PADDING.items():
            view = getattr(inputs, name).numpy()
            view[:] = padding
            if name in values:
                view[places] = values[name]
        context_lens = inputs.context_lens.numpy()
        context_lens[:count] = starts + lengths
        context_lens[count:] = 0


# A padding row: greedy, stored nowhere, seeing nothing.
_PADDING: Final = {
    "token_ids": 0,
    "sources": -1,
    "positions": 0,
    "slot_mapping": -1,
    "seeds": 0,
    "places": 0,
    "holders": -1,
    "temperature": 0.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition": 1.0,
    "frequency": 0.0,
    "presence": 0.0,
    "top_k": 1,
}


class _Answer:
    """Tokens that are copied to the host behind the step that samples them."""

    def __init__(
        self, rows: Sequence[DecodeRow], queries: int, tokens: Tensor, host: Tensor
    ) -> None:
        self.rows = rows
        self._queries = queries
        self._host = host[: len(rows) * queries]
        self._host.copy_(tokens[: len(rows) * queries], non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if tokens.is_cuda else None

    def tokens(self) -> list[int]:
        """Wait for the copy, and for nothing that was launched after it."""
        if self._copied is not None:
            self._copied.synchronize()
        tokens: list[int] = self._host.tolist()
        if self._queries == 1:
            return tokens
        ends = [(index + 1) * self._queries for index in range(len(self.rows))]
        return [
            token
            for row, end in zip(self.rows, ends, strict=True)
            for token in tokens[end - 1 - len(row.drafts) : end]
        ]


def row_buckets(max_rows: int) -> list[int]:
    """Powers of two up to 8, then steps of 8 to 64, of 32 beyond; the last holds `max_rows`."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, max_rows + 32, 32)]
    return [size for size in sizes if size < max_rows] + [max_rows]


def context_tiers(max_model_len: int, block_size: int) -> list[int]:
    """Lengths of context that graphs are recorded for, whole blocks; the last holds all."""
    longest = -(-max_model_len // block_size) * block_size
    tiers, tier = [], -(-_SHORTEST_TIER // block_size) * block_size
    while tier < longest:
        tiers.append(tier)
        tier *= _TIER_GROWTH
    return [*tiers, longest]


def _bytes(shape: Shape, columns: int) -> int:
    per_row = sum(dtype.itemsize for dtype in _PER_ROW)
    return shape.rows * per_row + 4 * shape.bucket * (1 + columns)


def _views(buffer: Tensor, shape: Shape, columns: int) -> StaticInputs:
    """Cut a buffer of bytes into the inputs of one shape."""
    views, offset = [], 0
    for dtype, count in (*((d, shape.rows) for d in _PER_ROW), (torch.int32, shape.bucket)):
        end = offset + count * dtype.itemsize
        views.append(buffer[offset:end].view(dtype))
        offset = end
    tables = buffer[offset : offset + 4 * shape.bucket * columns].view(torch.int32)
    return StaticInputs._make([*views, tables.view(shape.bucket, columns)])


def _host_zeros(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host memory that a GPU can read and write while the host goes on."""
    return torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")
