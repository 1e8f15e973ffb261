"""Low-rank adapters, a different one for every sequence of a batch."""

import torch
from torch import Tensor

from kernels.checks import require_dtype, require_float, require_one_device
from kernels.dispatch import choose
from kernels.errors import ShapeError


def lora_add(
    out: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    query_start_lens: Tensor,
    adapters: Tensor,
) -> None:
    """Add each sequence's adapter to a linear layer's result, in place.

    out += scales[l] * (x a[l]ᵀ) b[l]ᵀ for the rows of a sequence whose adapter is l. Adapters of
    less rank than R are padded with zeros.

    Args:
        out: [T, N] bf16 | fp16 | fp32, written. Rows may be strided (a slice of a fused layer).
        x: [T, K], out.dtype. Rows may be strided.
        a: [L, R, K], out.dtype, contiguous.
        b: [L, N, R], out.dtype, contiguous.
        scales: [L] fp32, usually alpha / rank.
        query_start_lens: [S + 1] int32. Row of each sequence's first token, then T.
        adapters: [S] int32. The sequence's adapter; -1: none.

    Raises:
        ShapeError: sizes disagree.
        DTypeError: a tensor has another dtype than given above.

    Source: Hu et al. 2022, "LoRA"; Chen et al. 2024, "Punica: Multi-Tenant LoRA Serving" (SGMV).
    """
    require_float(out, "out")
    for name, values in (("x", x), ("a", a), ("b", b)):
        require_float(values, name, like=out.dtype)
    require_dtype(scales, "scales", torch.float32)
    require_dtype(query_start_lens, "query_start_lens", torch.int32)
    require_dtype(adapters, "adapters", torch.int32)
    require_one_device(out, x, a, b, scales, query_start_lens, adapters)
    _check_shapes(out, x, a, b, scales, query_start_lens, adapters)
    choose("lora_add", out.device.type)(out, x, a, b, scales, query_start_lens, adapters)


def _check_shapes(
    out: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    query_start_lens: Tensor,
    adapters: Tensor,
) -> None:
    if out.dim() != 2 or x.dim() != 2 or x.shape[0] != out.shape[0]:
        raise ShapeError(f"out is {list(out.shape)} and x is {list(x.shape)}; need [T, N], [T, K]")
    if out.numel() and out.stride(1) != 1:
        raise ShapeError("out's channels must lie side by side")
    if a.dim() != 3 or a.shape[2] != x.shape[1] or not a.is_contiguous():
        raise ShapeError(f"a is {list(a.shape)}; need [L, R, {x.shape[1]}], contiguous")
    count, rank, _ = a.shape
    if b.shape != (count, out.shape[1], rank) or not b.is_contiguous():
        raise ShapeError(
            f"b is {list(b.shape)}; need [{count}, {out.shape[1]}, {rank}], contiguous"
        )
    if scales.shape != (count,):
        raise ShapeError(f"scales is {list(scales.shape)}; need [{count}]")
    if adapters.dim() != 1 or query_start_lens.shape != (adapters.shape[0] + 1,):
        raise ShapeError(
            f"query_start_lens is {list(query_start_lens.shape)} and adapters is "
            f"{list(adapters.shape)}; need [S + 1] and [S]"
        )
