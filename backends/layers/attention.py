"""Causal grouped-query attention over a paged cache, for a packed batch of sequences."""

from typing import NamedTuple

import torch
from torch import Tensor

from backends.layers.norm import RMSNorm
from kernels.paged_attention import paged_attention
from kernels.rope_store import rope_store


class ForwardBatch(NamedTuple):
    """One step's tokens, all sequences packed end to end; T tokens, S sequences, M blocks."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, each token's place in its sequence."""
    slot_mapping: Tensor
    """[T] int64, where the token's key and value go: block id * block size + offset."""
    block_tables: Tensor
    """[S, M] int32; -1 pads."""
    query_start_lens: Tensor
    """[S + 1] int32."""
    context_lens: Tensor
    """[S] int32, tokens in the cache once this step's are stored."""
    max_query_len: int
    max_context_len: int
    adapters: Tensor | None = None
    """[S] int32, each sequence's LoRA adapter, -1: none; None: nobody has one."""


class LayerCache(NamedTuple):
    """One layer's share of the paged cache."""

    keys: Tensor
    """[num_blocks, block_size, Hkv, D], of a float dtype, or 8-bit codes."""
    values: Tensor
    key_scales: Tensor | None = None
    """[num_blocks, block_size, Hkv] fp32, beside codes only."""
    value_scales: Tensor | None = None


class Attention:
    """Rotates, stores and attends; the projections around it belong to the model."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        scale: float | None = None,
        soft_cap: float | None = None,
        window: int | None = None,
        query_norm: RMSNorm | None = None,
        key_norm: RMSNorm | None = None,
    ) -> None:
        """Args:
        scale: of scores; None: head_dim ** -0.5.
        soft_cap: of scores; see `paged_attention`.
        window: positions that a query sees; None: all.
        query_norm, key_norm: of each head, before the rotation; both or neither.
        """
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.soft_cap = soft_cap
        self.window = window
        self.query_norm = query_norm
        self.key_norm = key_norm

    def __call__(
        self, qkv: Tensor, cos_sin_cache: Tensor, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        """Attend each token to its sequence's cache, its own key and value included.

        Args:
            qkv: [T, (heads + 2 * kv_heads) * head_dim], the fused projection.
            cos_sin_cache: [P, head_dim] fp32.

        Returns:
            [T, heads * head_dim].
        """
        packed = qkv.view(-1, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k, v = torch.split(packed, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q = rope_store(
            q,
            k,
            v,
            cos_sin_cache,
            batch.positions,
            cache.keys,
            cache.values,
            batch.slot_mapping,
            k_scale=cache.key_scales,
            v_scale=cache.value_scales,
        )
        mixed = paged_attention(
            q,
            cache.keys,
            cache.values,
            batch.block_tables,
            batch.query_start_lens,
            batch.context_lens,
            scale=self.scale,
            max_query_len=batch.max_query_len,
            max_context_len=batch.max_context_len,
            window=self.window,
            soft_cap=self.soft_cap,
            k_scale=cache.key_scales,
            v_scale=cache.value_scales,
        )
        return mixed.view(-1, self.heads * self.head_dim)
