"""Decode steps as recorded graphs: one replay instead of hundreds of launches.

A graph reads and writes the same memory at every replay, and has one shape. So a step's inputs lie
in one buffer that is copied to the device in one go, steps are padded to a bucket of rows, and
there are graphs for a few lengths of context. A padding row stores nothing, sees nothing, and its
token is thrown away.

A row's token may be the one that the last launch sampled, wherever the host is by then: it is read
on the device. So a step can be launched before the tokens of the one before it are known.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.engine.input_batch import BlockTables
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


class StaticInputs(NamedTuple):
    """Views of one buffer; R rows of a bucket, M blocks of a tier."""

    token_ids: Tensor
    """[R] int64."""
    sources: Tensor
    positions: Tensor
    slot_mapping: Tensor
    seeds: Tensor
    places: Tensor
    temperature: Tensor
    """[R] fp32."""
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    """[R] int32."""
    context_lens: Tensor
    block_tables: Tensor
    """[R, M] int32."""


_DTYPES: Final = (torch.int64,) * 6 + (torch.float32,) * 3 + (torch.int32,) * 2


class Launched(Protocol):
    """A step on its way."""

    @property
    def rows(self) -> Sequence[DecodeRow]:
        """What it computes."""
        ...

    def tokens(self) -> list[int]:
        """Wait for the sampled tokens, one per row."""
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
    ) -> None:
        self._model = model
        self._caches = caches
        self._tables = tables
        self._block_size = block_size
        self._device = device
        self._capture = capture
        self.buckets = row_buckets(max_rows)
        self.tiers = context_tiers(max_model_len, block_size)
        size = _bytes(self.buckets[-1], self.tiers[-1] // block_size)
        self._static = torch.zeros(size, dtype=torch.uint8, device=device)
        # Of each as many as launches that may be under way when another is filled in.
        self._staged = [_host_zeros(size, torch.uint8, device) for _ in range(_IN_FLIGHT)]
        self._answers = [
            _host_zeros(self.buckets[-1], torch.int64, device) for _ in range(_IN_FLIGHT)
        ]
        self._turn = 0
        self._tokens = torch.zeros(self.buckets[-1], dtype=torch.int64, device=device)
        self._starts = torch.arange(self.buckets[-1] + 1, dtype=torch.int32, device=device)
        self._replays: dict[tuple[int, int], Step] = {}
        self._states: Sequence[SamplingState] = ()
        self._columns: DrawColumns | None = None

    @property
    def max_rows(self) -> int:
        """Most sequences of one launch."""
        return self.buckets[-1]

    @torch.inference_mode()
    def prepare(self) -> None:
        """Record every shape now, so that no request waits for it."""
        for tier in self.tiers:
            for bucket in reversed(self.buckets):
                self._replay(bucket, tier)

    def launch(self, rows: Sequence[DecodeRow], states: Sequence[SamplingState]) -> Launched:
        """Start a decode step; returns at once.

        Args:
            rows: One to `max_rows`. Where a row has a source, the last launch sampled its token.
            states: The rows' sampling parameters. None of them edits logits.
        """
        bucket = next(size for size in self.buckets if size >= len(rows))
        longest = 1 + max(row.start for row in rows)
        tier = next(size for size in self.tiers if size >= longest)
        replay = self._replay(bucket, tier)
        columns = tier // self._block_size
        self._turn = (self._turn + 1) % _IN_FLIGHT
        staged = self._staged[self._turn]
        self._fill(_views(staged, bucket, columns), rows, states)
        size = _bytes(bucket, columns)
        self._static[:size].copy_(staged[:size], non_blocking=True)
        replay()
        return _Answer(rows, self._tokens, self._answers[self._turn])

    def _replay(self, bucket: int, tier: int) -> Step:
        replay = self._replays.get((bucket, tier))
        if replay is None:
            inputs = _views(self._static, bucket, tier // self._block_size)
            for view, value in zip(inputs, _PADDING, strict=True):
                view.fill_(value)
            replay = self._capture(lambda: self._step(inputs, bucket, tier))
            self._replays[bucket, tier] = replay
        return replay

    def _step(self, inputs: StaticInputs, bucket: int, tier: int) -> None:
        """What a graph records: tokens in, one forward pass, tokens out."""
        sampled = self._tokens[inputs.sources.clamp(min=0)]
        batch = ForwardBatch(
            token_ids=torch.where(inputs.sources >= 0, sampled, inputs.token_ids),
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            block_tables=inputs.block_tables,
            query_start_lens=self._starts[: bucket + 1],
            context_lens=inputs.context_lens,
            max_query_len=1,
            max_context_len=tier,
        )
        logits = self._model.step(batch, self._caches, None)
        tokens = sample(
            logits,
            inputs.temperature,
            inputs.top_k,
            inputs.top_p,
            inputs.min_p,
            inputs.seeds,
            inputs.places,
        )
        self._tokens[:bucket].copy_(tokens)

    def _fill(
        self, inputs: StaticInputs, rows: Sequence[DecodeRow], states: Sequence[SamplingState]
    ) -> None:
        """Write a step's rows; those of the bucket that are left become padding."""
        if states != self._states or self._columns is None:
            self._states = list(states)
            self._columns = draw_columns(states, self._model.config.vocab_size)
        count, size, columns = len(rows), self._block_size, self._columns
        starts = np.array([row.start for row in rows], dtype=np.int64)
        tables = self._tables.table[[self._tables.row(row.request) for row in rows]]
        width = min(tables.shape[1], inputs.block_tables.shape[1])
        inputs.block_tables.numpy()[:count, :width] = tables[:, :width]
        known = [0 if r.source >= 0 else r.request.token_ids[r.start] for r in rows]
        values: dict[str, npt.ArrayLike] = {
            "token_ids": known,
            "sources": [row.source for row in rows],
            "positions": starts,
            "slot_mapping": tables[np.arange(count), starts // size].astype(np.int64) * size
            + starts % size,
            "seeds": columns.seeds,
            "places": [row.start + 1 - row.request.num_prompt_tokens for row in rows],
            "temperature": columns.temperature,
            "top_p": columns.top_p,
            "min_p": columns.min_p,
            "top_k": columns.top_k,
            "context_lens": starts + 1,
        }
        for name, padding in zip(StaticInputs._fields[:-1], _PADDING, strict=False):
            view = getattr(inputs, name).numpy()
            view[:count] = values[name]
            view[count:] = padding


# A padding row: greedy, stored nowhere, seeing nothing.
_PADDING: Final = (0, -1, 0, -1, 0, 0, 0.0, 1.0, 0.0, 1, 0, 0)


class _Answer:
    """Tokens that are copied to the host behind the step that samples them."""

    def __init__(self, rows: Sequence[DecodeRow], tokens: Tensor, host: Tensor) -> None:
        self.rows = rows
        self._host = host[: len(rows)]
        self._host.copy_(tokens[: len(rows)], non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if tokens.is_cuda else None

    def tokens(self) -> list[int]:
        """Wait for the copy, and for nothing that was launched after it."""
        if self._copied is not None:
            self._copied.synchronize()
        tokens: list[int] = self._host.tolist()
        return tokens


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


def _bytes(rows: int, columns: int) -> int:
    return rows * (sum(dtype.itemsize for dtype in _DTYPES) + 4 * columns)


def _views(buffer: Tensor, rows: int, columns: int) -> StaticInputs:
    """Cut a buffer of bytes into the inputs of one shape."""
    views, offset = [], 0
    for dtype in _DTYPES:
        end = offset + rows * dtype.itemsize
        views.append(buffer[offset:end].view(dtype))
        offset = end
    tables = buffer[offset : offset + 4 * rows * columns].view(torch.int32).view(rows, columns)
    return StaticInputs._make([*views, tables])


def _host_zeros(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host memory that a GPU can read and write while the host goes on."""
    return torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")
