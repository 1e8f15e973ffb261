"""Rotary embedding and cache writes in one: what lies between the projection and attention."""

import torch
from torch import Tensor

from kernels.checks import (
    CODE_DTYPES,
    INDEX_DTYPES,
    require_dtype,
    require_float,
    require_one_device,
    require_scales,
)
from kernels.dispatch import choose
from kernels.errors import ShapeError


def rope_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, and write keys and values into their slots.

    The same as `rope` and then `store_kv`, bit for bit, in one launch.

    Args:
        q: [T, Hq, D] bf16 | fp16 | fp32. Rows may be strided (a slice of a fused QKV); not written.
        k, v: [T, Hkv, D], q.dtype. As q.
        cos_sin_cache: [P, D] fp32. Row p: D/2 cosines, then D/2 sines of position p.
        positions: [T] int32 | int64, each in [0, P).
        k_cache, v_cache, slot_mapping, k_scale, v_scale: see `store_kv`.

    Returns:
        [T, Hq, D], q.dtype: the rotated queries.

    Raises:
        ShapeError: sizes disagree, D is odd, or a cache is not contiguous.
        DTypeError: a tensor has another dtype than given above.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", §3.4.2.
    """
    require_float(q, "q")
    for name, values in (("k", k), ("v", v)):
        require_float(values, name, like=q.dtype)
    require_dtype(cos_sin_cache, "cos_sin_cache", torch.float32)
    for name, values in (("positions", positions), ("slot_mapping", slot_mapping)):
        require_dtype(values, name, *INDEX_DTYPES)
    if k_cache.dtype not in CODE_DTYPES:
        require_float(k_cache, "k_cache")
    require_dtype(v_cache, "v_cache", k_cache.dtype)
    require_scales(k_cache, k_scale, "k_scale")
    require_scales(v_cache, v_scale, "v_scale")
    require_one_device(
        q, k, v, cos_sin_cache, positions, k_cache, v_cache, slot_mapping, k_scale, v_scale
    )
    _check_shapes(q, k, v, cos_sin_cache, k_cache, v_cache)
    for name, values in (("positions", positions), ("slot_mapping", slot_mapping)):
        if values.shape != (q.shape[0],):
            raise ShapeError(f"{name} is {list(values.shape)}; need [{q.shape[0]}]")
    result: Tensor = choose("rope_store", q.device.type)(
        q,
        k,
        v,
        cos_sin_cache,
        positions,
        k_cache,
        v_cache,
        slot_mapping,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    return result


def _check_shapes(
    q: Tensor, k: Tensor, v: Tensor, cos_sin_cache: Tensor, k_cache: Tensor, v_cache: Tensor
) -> None:
    if q.dim() != 3 or k.dim() != 3 or v.shape != k.shape:
        shapes = [list(tensor.shape) for tensor in (q, k, v)]
        raise ShapeError(f"q, k and v are {shapes}; need [T, Hq, D] and twice [T, Hkv, D]")
    tokens, _, head_dim = q.shape
    if head_dim % 2:
        raise ShapeError(f"head size {head_dim} is odd; rotation needs pairs")
    if k.shape[0] != tokens or k.shape[2] != head_dim:
        raise ShapeError(f"k is {list(k.shape)} but q is {list(q.shape)}")
    if cos_sin_cache.dim() != 2 or cos_sin_cache.shape[1] != head_dim:
        raise ShapeError(f"cos_sin_cache is {list(cos_sin_cache.shape)}; need [P, {head_dim}]")
    if k_cache.dim() != 4 or v_cache.shape != k_cache.shape or k_cache.shape[2:] != k.shape[1:]:
        raise ShapeError(
            f"k_cache is {list(k_cache.shape)} and v_cache is {list(v_cache.shape)}; "
            f"need [N, B, {k.shape[1]}, {head_dim}]"
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ShapeError("k_cache and v_cache must be contiguous")
