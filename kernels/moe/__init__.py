"""A feed-forward block of experts: which of them a token goes to, and what they make of it."""

import torch
from torch import Tensor

from kernels.checks import require_dtype, require_float, require_one_device
from kernels.dispatch import choose
from kernels.errors import ShapeError


def route_experts(logits: Tensor, *, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Choose each token's experts: the likeliest `top_k` of the softmax, the first of equals.

    Args:
        logits: [T, E] bf16 | fp16 | fp32, contiguous.
        top_k: experts per token, 1..E.
        renormalise: whether a token's weights are made to add up to 1.

    Returns:
        weights: [T, top_k] fp32, largest first.
        experts: [T, top_k] int32.

    Raises:
        ShapeError: `logits` is not [T, E], or `top_k` is not in 1..E.
        DTypeError: `logits` is not a float tensor.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks"; Jiang et al. 2024, "Mixtral".
    """
    require_float(logits, "logits")
    if logits.dim() != 2 or not logits.is_contiguous():
        raise ShapeError(f"logits is {list(logits.shape)}; need [T, E], contiguous")
    if not 1 <= top_k <= logits.shape[1]:
        raise ShapeError(f"top_k is {top_k}; need 1 to {logits.shape[1]}, the experts")
    result: tuple[Tensor, Tensor] = choose("route_experts", logits.device.type)(
        logits, top_k=top_k, renormalise=renormalise
    )
    return result


def expert_mlp(
    x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor
) -> Tensor:
    """Send each token through its experts' SwiGLU blocks and add the results by weight.

    Args:
        x: [T, H] bf16 | fp16 | fp32.
        gate_up: [E, 2F, H], x.dtype, contiguous. Each expert's gate projection, then its up one.
        down: [E, H, F], x.dtype, contiguous.
        weights: [T, k] fp32.
        experts: [T, k] int32, each in 0..E-1.

    Returns:
        [T, H], x.dtype; products and their sum over experts accumulated in fp32.

    Raises:
        ShapeError: sizes disagree.
        DTypeError: a tensor has another dtype than given above.

    Source: Gale et al. 2023, "MegaBlocks": products grouped by expert, without dropping tokens.
    """
    require_float(x, "x")
    require_float(gate_up, "gate_up", like=x.dtype)
    require_float(down, "down", like=x.dtype)
    require_dtype(weights, "weights", torch.float32)
    require_dtype(experts, "experts", torch.int32)
    require_one_device(x, gate_up, down, weights, experts)
    if x.dim() != 2 or down.dim() != 3 or down.shape[1] != x.shape[1]:
        raise ShapeError(
            f"x is {list(x.shape)} and down is {list(down.shape)}; need [T, H] and [E, H, F]"
        )
    count, hidden, features = down.shape
    if gate_up.shape != (count, 2 * features, hidden):
        raise ShapeError(
            f"gate_up is {list(gate_up.shape)}; need [{count}, {2 * features}, {hidden}]"
        )
    if not (gate_up.is_contiguous() and down.is_contiguous()):
        raise ShapeError("gate_up and down must be contiguous")
    if experts.dim() != 2 or experts.shape[0] != x.shape[0] or weights.shape != experts.shape:
        raise ShapeError(
            f"weights is {list(weights.shape)} and experts is {list(experts.shape)}; "
            f"need [{x.shape[0]}, k]"
        )
    result: Tensor = choose("expert_mlp", x.device.type)(x, gate_up, down, weights, experts)
    return result
