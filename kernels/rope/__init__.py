"""Rotary position embedding."""

import torch
from torch import Tensor

from kernels.checks import INDEX_DTYPES, require_dtype, require_float, require_one_device
from kernels.dispatch import choose
from kernels.errors import ShapeError


def rope(q: Tensor, k: Tensor, cos_sin_cache: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate each head of each token by the angles of the token's position.

    Pairs are (i, i + D/2), the "rotate_half" convention of Llama checkpoints on Hugging Face.

    Args:
        q: [T, Hq, D] bf16 | fp16 | fp32. Rows may be strided (a slice of a fused QKV); not written.
        k: [T, Hkv, D], q.dtype. As q.
        cos_sin_cache: [P, D] fp32. Row p: D/2 cosines, then D/2 sines of position p.
        positions: [T] int32 | int64, each in [0, P).

    Returns:
        (q, k) rotated: new tensors whose rows may be strided, q.dtype, computed in fp32 and
        rounded once.

    Raises:
        ShapeError: head sizes or token counts disagree, or D is odd.
        DTypeError: a tensor has another dtype than given above.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", §3.4.2.
    """
    require_float(q, "q")
    if k.dtype != q.dtype:
        require_float(k, "k", like=q.dtype)
    if cos_sin_cache.dtype != torch.float32:
        require_dtype(cos_sin_cache, "cos_sin_cache", torch.float32)
    if positions.dtype not in INDEX_DTYPES:
        require_dtype(positions, "positions", *INDEX_DTYPES)
    require_one_device(q, k, cos_sin_cache, positions)
    _check_shapes(q, k, cos_sin_cache, positions)
    result: tuple[Tensor, Tensor] = choose("rope", q.device.type)(q, k, cos_sin_cache, positions)
    return result


def _check_shapes(q: Tensor, k: Tensor, cos_sin_cache: Tensor, positions: Tensor) -> None:
    if q.dim() != 3 or k.dim() != 3:
        raise ShapeError(f"q is {list(q.shape)} and k is {list(k.shape)}; need [T, H, D]")
    tokens, _, head_dim = q.shape
    if head_dim % 2:
        raise ShapeError(f"head size {head_dim} is odd; rotation needs pairs")
    if k.shape[0] != tokens or k.shape[2] != head_dim:
        raise ShapeError(f"k is {list(k.shape)} but q is {list(q.shape)}")
    if cos_sin_cache.dim() != 2 or cos_sin_cache.shape[1] != head_dim:
        raise ShapeError(f"cos_sin_cache is {list(cos_sin_cache.shape)}; need [P, {head_dim}]")
    if positions.dim() != 1 or positions.shape[0] != tokens:
        raise ShapeError(f"positions is {list(positions.shape)}; need [{tokens}]")
