"""The call of the C++ decoder: weights become pointers once, a step's tensors on every call."""

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int, c_int64, c_void_p
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.decoder import DecoderWeights, LayerWeights, PackedWeight
from kernels.decoder.sketch import sketch_of, sketch_pays
from kernels.native import function, require_ok, threads_for
from kernels.native_cache import CACHE_KINDS, CacheShape, LayerCache, half_of, is_readable, shape_of

KeysAndValues = Sequence[tuple[Tensor, Tensor, *tuple[Tensor | None, ...]]]
"""Each layer's caches [num_blocks, block_size, Hkv, D], of any dtype, and of 8-bit codes their
scales [num_blocks, block_size, Hkv]; contiguous."""


class _Weight(Structure):
    _fields_ = (
        ("packed", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("channels", c_int),
        ("inputs", c_int),
        ("group", c_int),
        ("kind", c_int),
        ("float_zeros", c_int),
        ("wide", c_int),
    )


class _Layer(Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("qkv", _Weight),
        ("output", _Weight),
        ("post_norm", c_void_p),
        ("gate_up", _Weight),
        ("down", _Weight),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("sinks", c_void_p),
        ("output_norm", c_void_p),
        ("down_norm", c_void_p),
        ("cos_sin", c_void_p),
        ("window", c_int),
        ("cache", LayerCache),
    )


class _Decoder(Structure):
    _fields_ = (
        ("layers", c_void_p),
        ("embedding", c_void_p),
        ("positions", c_int64),
        ("num_layers", c_int),
        ("vocabulary", c_int),
        ("hidden", c_int),
        ("middle", c_int),
        ("heads", c_int),
        ("gelu", c_int),
        ("eps", c_float),
        ("scale", c_float),
        ("soft_cap", c_float),
        ("norm", c_void_p),
        ("head", _Weight),
        ("sketch", _Weight),
        ("sketch_errors", c_void_p),
        ("cache", CacheShape),
    )


class _Batch(Structure):
    _fields_ = (
        ("token_ids", c_void_p),
        ("token_positions", c_void_p),
        ("slots", c_void_p),
        ("block_tables", c_void_p),
        ("query_start_lens", c_void_p),
        ("context_lens", c_void_p),
        ("tokens", c_int),
        ("sequences", c_int),
        ("table_len", c_int),
    )


class NativeDecoder:
    """One model's layers. One thread at a time may call it.

    A step's inputs are six tensors:

    - token_ids, positions, slot_mapping: [T] int64, contiguous.
    - block_tables: [S, M] int32, contiguous; -1 pads.
    - query_start_lens: [S + 1] int32.
    - context_lens: [S] int32, with this step's tokens.

    Where they are the same objects as in the step before, their addresses are not asked for again.
    """

    def __init__(self, weights: DecoderWeights) -> None:
        self._weights = weights  # Keeps alive what the pointers point to.
        self._layers = (_Layer * len(weights.layers))(
            *(_layer(layer, weights.cos_sin_cache) for layer in weights.layers)
        )
        self._sketch = sketch_of(weights.head) if sketch_pays() else None
        vocabulary, hidden = weights.embedding.shape
        self._hidden = hidden
        self._decoder = _Decoder(
            layers=ctypes.addressof(self._layers),
            embedding=weights.embedding.data_ptr(),
            positions=weights.cos_sin_cache.shape[0],
            num_layers=len(weights.layers),
            vocabulary=vocabulary,
            hidden=hidden,
            middle=weights.layers[0].down.inputs,
            heads=weights.heads,
            gelu=weights.gelu,
            eps=weights.eps,
            scale=weights.scale,
            soft_cap=weights.soft_cap or 0.0,
            norm=weights.norm.data_ptr(),
            head=_weight(weights.head),
        )
        if self._sketch is not None:
            self._decoder.sketch = _weight(self._sketch.weight)
            self._decoder.sketch_errors = self._sketch.errors.data_ptr()
        self._address = ctypes.addressof(self._decoder)
        self._caches: KeysAndValues | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._batch = _Batch()
        self._batch_address = ctypes.addressof(self._batch)
        self._room = _Room(0, self)
        first = weights.layers[0]
        linears = (first.qkv, first.output, first.gate_up, first.down)
        self._multiplications = len(weights.layers) * sum(w.inputs * w.channels for w in linears)

    def can_use(self, caches: KeysAndValues) -> bool:
        """Whether the caches are such as C++ reads, and from now on use them."""
        if caches is self._caches:
            return True
        if not caches or not all(is_readable(half) for cache in caches for half in cache[:2]):
            return False
        for layer, (keys, values, *scales) in zip(self._layers, caches, strict=True):
            key_scales, value_scales = scales if scales else (None, None)
            layer.cache = LayerCache(half_of(keys, key_scales), half_of(values, value_scales))
        self._decoder.cache = shape_of(caches[0][0])
        self._caches = caches
        self._room = _Room(0, self)  # What a token takes depends on the heads' size.
        return True

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the layers on one packed batch; writes the caches.

        Returns:
            [T, H] fp32, the residual stream after the last layer, before the final norm.

        Raises:
            KernelError: a token, position, slot or block id points outside its table.
        """
        out = torch.empty(inputs[0].shape[0], self._hidden, dtype=torch.float32)
        self._run(inputs, None, out.data_ptr(), None, None)
        return out

    def step(self, *inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Run the layers, then norm and head on `rows` [R] int64 of the batch (None: on all).

        Returns:
            [R, V] fp32.

        Raises:
            KernelError: as `forward`.
        """
        count = inputs[0].shape[0] if rows is None else rows.shape[0]
        out = torch.empty(count, self._weights.head.channels, dtype=torch.float32)
        room = self._room_for(inputs[0].shape[0])
        self._run(inputs, rows, room.stream, out.data_ptr(), None)
        return out

    def likeliest(self, *inputs: Tensor, rows: Tensor | None = None) -> list[int]:
        """As `step`, but only the place of each row's largest logit, the first of equals."""
        count = inputs[0].shape[0] if rows is None else rows.shape[0]
        room = self._room_for(inputs[0].shape[0])
        self._run(inputs, rows, room.stream, room.logits, room.tokens_at)
        chosen: list[int] = room.tokens[:count].tolist()
        return chosen

    def logits(self, hidden: Tensor) -> Tensor:
        """Norm rows [R, H] that `forward` returned and apply the head: [R, V] fp32."""
        hidden = hidden.contiguous()
        rows, head = hidden.shape[0], self._weights.head
        out = torch.empty(rows, head.channels, dtype=torch.float32)
        function("decoder_logits")(
            self._address,
            hidden.data_ptr(),
            rows,
            out.data_ptr(),
            self._room_for(rows).scratch,
            threads_for(rows * head.channels * head.inputs),
        )
        return out

    def _run(
        self,
        inputs: tuple[Tensor, ...],
        rows: Tensor | None,
        stream: int,
        logits: int | None,
        tokens_at: int | None,
    ) -> None:
        if len(inputs) != len(self._inputs) or not all(map(is_, inputs, self._inputs)):
            self._point_to(inputs)
        tokens = self._batch.tokens
        outcome = function("decoder_step")(
            self._address,
            self._batch_address,
            stream,
            None if rows is None else rows.data_ptr(),
            tokens if rows is None else rows.shape[0],
            logits,
            tokens_at,
            self._room_for(tokens).scratch,
            threads_for(tokens * self._multiplications),
        )
        require_ok(outcome)

    def _point_to(self, inputs: tuple[Tensor, ...]) -> None:
        token_ids, positions, slot_mapping, block_tables, query_start_lens, context_lens = inputs
        batch = self._batch
        batch.token_ids = token_ids.data_ptr()
        batch.token_positions = positions.data_ptr()
        batch.slots = slot_mapping.data_ptr()
        batch.block_tables = block_tables.data_ptr()
        batch.query_start_lens = query_start_lens.data_ptr()
        batch.context_lens = context_lens.data_ptr()
        batch.tokens = token_ids.shape[0]
        batch.sequences, batch.table_len = block_tables.shape
        self._inputs = inputs

    def _room_for(self, tokens: int) -> "_Room":
        """Memory that so many tokens need, kept for the next call."""
        if tokens > self._room.capacity:
            self._room = _Room(tokens, self)
        return self._room

    def scratch_bytes(self, tokens: int) -> int:
        """What a call of so many tokens writes between its parts."""
        return function("decoder_scratch_bytes")(self._address, tokens)

    @property
    def row_sizes(self) -> tuple[int, int]:
        """Numbers in a row of the stream, and in one of logits."""
        return self._hidden, self._weights.head.channels


class _Room:
    """Memory for steps of up to so many tokens, and its addresses."""

    def __init__(self, capacity: int, decoder: NativeDecoder) -> None:
        self.capacity = capacity
        hidden, vocabulary = decoder.row_sizes
        bytes_needed = decoder.scratch_bytes(capacity) if capacity else 0
        # Mapped where it is written: nobody may ever ask for the logits of so many rows.
        self._arrays: list[npt.NDArray[Any]] = [
            np.empty(bytes_needed, dtype=np.uint8),
            np.empty((capacity, hidden), dtype=np.float32),
            np.empty((capacity, vocabulary), dtype=np.float32),
        ]
        self.tokens = np.empty(capacity, dtype=np.int64)
        self.scratch, self.stream, self.logits = (array.ctypes.data for array in self._arrays)
        self.tokens_at = self.tokens.ctypes.data


def _layer(weights: LayerWeights, cos_sin_cache: Tensor) -> _Layer:
    own = weights.cos_sin_cache
    return _Layer(
        input_norm=weights.input_norm.data_ptr(),
        qkv=_weight(weights.qkv),
        output=_weight(weights.output),
        post_norm=weights.post_norm.data_ptr(),
        gate_up=_weight(weights.gate_up),
        down=_weight(weights.down),
        query_norm=_pointer(weights.query_norm),
        key_norm=_pointer(weights.key_norm),
        sinks=_pointer(weights.sinks),
        output_norm=_pointer(weights.output_norm),
        down_norm=_pointer(weights.down_norm),
        cos_sin=(cos_sin_cache if own is None else own).data_ptr(),
        window=weights.window or 0,
    )


def _weight(weight: PackedWeight) -> _Weight:
    return _Weight(
        packed=weight.packed.data_ptr(),
        scale=_pointer(weight.scale),
        bias=_pointer(weight.bias),
        channels=weight.channels,
        inputs=weight.inputs,
        group=weight.group or 0,
        kind=CACHE_KINDS.get(weight.packed.dtype, 0),
        float_zeros=weight.float_zeros,
        wide=weight.packed.dtype == torch.int8,
    )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
