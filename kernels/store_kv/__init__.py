"""Writing new keys and values into the paged cache."""

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


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Write each token's key and value into its cache slot.

    Args:
        k, v: [T, Hkv, D] bf16 | fp16 | fp32. Rows may be strided (a slice of a fused QKV).
        k_cache, v_cache: [N, B, Hkv, D] bf16 | fp16 | fp32 | int8 | fp8 e4m3, contiguous. Written
            in place, values converted to their dtype.
        slot_mapping: [T] int32 | int64. block_id * B + offset, all different; -1 skips the token.
        k_scale, v_scale: [N, B, Hkv] fp32, contiguous; given exactly where the cache is 8-bit, and
            written in place: each head of a token has its largest value / 127 (int8) or / 448
            (fp8), codes round half to even.

    Raises:
        ShapeError: sizes disagree, or a cache is not contiguous.
        DTypeError: a tensor has another dtype than given above.
    """
    require_float(k, "k")
    if k_cache.dtype not in CODE_DTYPES:
        require_float(k_cache, "k_cache")
    if v.dtype != k.dtype:
        require_float(v, "v", like=k.dtype)
    if v_cache.dtype != k_cache.dtype:
        require_dtype(v_cache, "v_cache", k_cache.dtype)
    require_scales(k_cache, k_scale, "k_scale")
    require_scales(v_cache, v_scale, "v_scale")
    if slot_mapping.dtype not in INDEX_DTYPES:
        require_dtype(slot_mapping, "slot_mapping", *INDEX_DTYPES)
    require_one_device(k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale)
    _check_shapes(k, v, k_cache, v_cache, slot_mapping)
    choose("store_kv", k.device.type)(
        k, v, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale
    )


def _check_shapes(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    if k.dim() != 3 or v.shape != k.shape:
        raise ShapeError(f"k is {list(k.shape)} and v is {list(v.shape)}; need [T, Hkv, D]")
    if k_cache.dim() != 4 or v_cache.shape != k_cache.shape or k_cache.shape[2:] != k.shape[1:]:
        raise ShapeError(
            f"k_cache is {list(k_cache.shape)} and v_cache is {list(v_cache.shape)}; "
            f"need [N, B, {k.shape[1]}, {k.shape[2]}]"
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ShapeError("k_cache and v_cache must be contiguous")
    if slot_mapping.dim() != 1 or slot_mapping.shape[0] != k.shape[0]:
        raise ShapeError(f"slot_mapping is {list(slot_mapping.shape)}; need [{k.shape[0]}]")
