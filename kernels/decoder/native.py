"""The call of the C++ decoder: weights become pointers once, a step's tensors on every call."""

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from kernels.decoder import DecoderWeights, LayerWeights, PackedWeight
from kernels.native import function, require_ok, threads_for

KeysAndValues = Sequence[tuple[Tensor, Tensor, *tuple[Tensor | None, ...]]]
"""Each layer's caches, [num_blocks, block_size, Hkv, D] fp32, contiguous; what follows is for
caches that C++ does not read."""


class _Weight(Structure):
    _fields_ = (
        ("packed", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("channels", c_int),
        ("inputs", c_int),
    )


class _Layer(Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("qkv", _Weight),
        ("output", _Weight),
        ("post_norm", c_void_p),
        ("gate_up", _Weight),
        ("down", _Weight),
        ("keys", c_void_p),
        ("values", c_void_p),
    )


class _Decoder(Structure):
    _fields_ = (
        ("layers", c_void_p),
        ("embedding", c_void_p),
        ("cos_sin", c_void_p),
        ("positions", c_int64),
        ("num_blocks", c_int64),
        ("num_layers", c_int),
        ("vocabulary", c_int),
        ("hidden", c_int),
        ("middle", c_int),
        ("heads", c_int),
        ("kv_heads", c_int),
        ("dim", c_int),
        ("block_size", c_int),
        ("eps", c_float),
        ("scale", c_float),
        ("norm", c_void_p),
        ("head", _Weight),
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
    """One model's layers. One thread at a time may call it."""

    def __init__(self, weights: DecoderWeights) -> None:
        self._weights = weights  # Keeps alive what the pointers point to.
        self._layers = (_Layer * len(weights.layers))(*map(_layer, weights.layers))
        vocabulary, hidden = weights.embedding.shape
        self._hidden = hidden
        self._decoder = _Decoder(
            layers=ctypes.addressof(self._layers),
            embedding=weights.embedding.data_ptr(),
            cos_sin=weights.cos_sin_cache.data_ptr(),
            positions=weights.cos_sin_cache.shape[0],
            num_layers=len(weights.layers),
            vocabulary=vocabulary,
            hidden=hidden,
            middle=weights.layers[0].down.inputs,
            heads=weights.heads,
            kv_heads=weights.kv_heads,
            dim=weights.head_dim,
            eps=weights.eps,
            scale=weights.scale,
            norm=weights.norm.data_ptr(),
            head=_weight(weights.head),
        )
        self._address = ctypes.addressof(self._decoder)
        self._caches: KeysAndValues | None = None
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._scratch_tokens = 0
        first = weights.layers[0]
        linears = (first.qkv, first.output, first.gate_up, first.down)
        self._multiplications = len(weights.layers) * sum(w.inputs * w.channels for w in linears)

    def can_use(self, caches: KeysAndValues) -> bool:
        """Whether the caches are such as C++ reads, and from now on use them."""
        if caches is self._caches:
            return True
        if not caches or any(
            t.dtype != torch.float32 or not t.is_contiguous() for cache in caches for t in cache[:2]
        ):
            return False
        for layer, (keys, values, *_) in zip(self._layers, caches, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        self._decoder.num_blocks, self._decoder.block_size = caches[0][0].shape[:2]
        self._caches = caches
        return True

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        block_tables: Tensor,
        query_start_lens: Tensor,
        context_lens: Tensor,
    ) -> Tensor:
        """Run the layers on one packed batch; writes the caches.

        Args:
            token_ids, positions, slot_mapping: [T] int64, contiguous.
            block_tables: [S, M] int32, contiguous; -1 pads.
            query_start_lens: [S + 1] int32.
            context_lens: [S] int32, with this step's tokens.

        Returns:
            [T, H] fp32, the residual stream after the last layer, before the final norm.

        Raises:
            KernelError: a token, position, slot or block id points outside its table.
        """
        tokens = token_ids.shape[0]
        batch = _Batch(
            token_ids.data_ptr(),
            positions.data_ptr(),
            slot_mapping.data_ptr(),
            block_tables.data_ptr(),
            query_start_lens.data_ptr(),
            context_lens.data_ptr(),
            tokens,
            *block_tables.shape,
        )
        out = torch.empty(tokens, self._hidden)
        outcome = function("decoder_forward")(
            self._address,
            ctypes.addressof(batch),
            out.data_ptr(),
            self._scratch_for(tokens),
            threads_for(tokens * self._multiplications),
        )
        require_ok(outcome)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Norm rows [R, H] that `forward` returned and apply the head: [R, V] fp32."""
        hidden = hidden.contiguous()
        rows, head = hidden.shape[0], self._weights.head
        out = torch.empty(rows, head.channels)
        function("decoder_logits")(
            self._address,
            hidden.data_ptr(),
            rows,
            out.data_ptr(),
            self._scratch_for(rows),
            threads_for(rows * head.channels * head.inputs),
        )
        return out

    def _scratch_for(self, tokens: int) -> int:
        """The address of memory that so many tokens need, kept for the next call."""
        if tokens > self._scratch_tokens:
            size = function("decoder_scratch_bytes")(self._address, tokens)
            self._scratch, self._scratch_tokens = torch.empty(size, dtype=torch.uint8), tokens
        return self._scratch.data_ptr()


def _layer(weights: LayerWeights) -> _Layer:
    return _Layer(
        input_norm=weights.input_norm.data_ptr(),
        qkv=_weight(weights.qkv),
        output=_weight(weights.output),
        post_norm=weights.post_norm.data_ptr(),
        gate_up=_weight(weights.gate_up),
        down=_weight(weights.down),
    )


def _weight(weight: PackedWeight) -> _Weight:
    return _Weight(
        packed=weight.packed.data_ptr(),
        scale=None if weight.scale is None else weight.scale.data_ptr(),
        bias=None if weight.bias is None else weight.bias.data_ptr(),
        channels=weight.channels,
        inputs=weight.inputs,
    )
