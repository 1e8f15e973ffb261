"""Choosing tokens where the logits lie: penalties, truncation, one keyed draw per row."""

import torch
from torch import Tensor

from kernels.checks import require_dtype, require_float, require_one_device
from kernels.dispatch import choose
from kernels.errors import ShapeError


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    places: Tensor,
) -> Tensor:
    """Draw one token per row; nothing waits for the device.

    A row's answer depends on its own logits, parameters, seed and place alone. In this order:
    logits over temperature; min_p drops tokens less likely than min_p times the likeliest; top_k
    keeps the k likeliest; top_p keeps the fewest likeliest that reach that share of what is left.
    Equals of the last token kept stay. Then the token with the largest logit + Gumbel noise wins,
    which is a draw from the softmax. Noise has 23 bits: tokens under 1e-7 are hardly ever drawn.

    Args:
        logits: [R, V] bf16 | fp16 | fp32, contiguous, not NaN; read only.
        temperature: [R] fp32; 0 takes the likeliest token, the first of equals.
        top_k: [R] int32; V or more keeps all.
        top_p: [R] fp32; 1 keeps all.
        min_p: [R] fp32; 0 keeps all.
        seeds: [R] int64, the key of each row's random stream, all 64 bits of it.
        places: [R] int64, at least 0: how many tokens came before. A draw is keyed by seed, place
            and token.

    Returns:
        [R] int64.

    Raises:
        ShapeError: sizes disagree, or there is no vocabulary.
        DTypeError: a tensor has another dtype than given above.

    Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox4x32-10);
    Gumbel 1954, "Statistical Theory of Extreme Values".
    """
    require_float(logits, "logits")
    if logits.dim() != 2 or not logits.shape[1] or not logits.is_contiguous():
        raise ShapeError(f"logits is {list(logits.shape)}; need [R, V], contiguous, V at least 1")
    rows = logits.shape[0]
    for name, values, dtype in (
        ("temperature", temperature, torch.float32),
        ("top_k", top_k, torch.int32),
        ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32),
        ("seeds", seeds, torch.int64),
        ("places", places, torch.int64),
    ):
        require_dtype(values, name, dtype)
        if values.shape != (rows,):
            raise ShapeError(f"{name} is {list(values.shape)}; need [{rows}]")
    require_one_device(logits, temperature, top_k, top_p, min_p, seeds, places)
    result: Tensor = choose("sample", logits.device.type)(
        logits, temperature, top_k, top_p, min_p, seeds, places
    )
    return result


def penalise(
    logits: Tensor, prompt_tokens: Tensor, counts: Tensor, holders: Tensor, strengths: Tensor
) -> None:
    """Lower the logits of tokens that a sequence holds already, in place.

    Repetition first, on tokens of prompt and answer: positive logits are divided, others
    multiplied. Then frequency times how often the answer holds the token, and presence if it does.

    Args:
        logits: [R, V] fp32, contiguous, written.
        prompt_tokens: [C, V] bool. Which tokens a sequence's prompt holds.
        counts: [C, V] int32. How often its answer holds each.
        holders: [R] int64. Which of the C sequences a row belongs to; -1 leaves the row alone.
        strengths: [R, 3] fp32. Repetition, frequency, presence; 1, 0, 0 change nothing.

    Raises:
        ShapeError: sizes disagree.
        DTypeError: a tensor has another dtype than given above.

    Source: Keskar et al. 2019, "CTRL", §4.1; frequency and presence as OpenAI's API has them.
    """
    for name, values, dtype in (
        ("logits", logits, torch.float32),
        ("prompt_tokens", prompt_tokens, torch.bool),
        ("counts", counts, torch.int32),
        ("holders", holders, torch.int64),
        ("strengths", strengths, torch.float32),
    ):
        require_dtype(values, name, dtype)
    if logits.dim() != 2 or not logits.is_contiguous():
        raise ShapeError(f"logits is {list(logits.shape)}; need [R, V], contiguous")
    rows, vocabulary = logits.shape
    if counts.dim() != 2 or counts.shape[1] != vocabulary or prompt_tokens.shape != counts.shape:
        raise ShapeError(
            f"prompt_tokens is {list(prompt_tokens.shape)} and counts is {list(counts.shape)}; "
            f"need [C, {vocabulary}]"
        )
    if holders.shape != (rows,) or strengths.shape != (rows, 3):
        raise ShapeError(
            f"holders is {list(holders.shape)} and strengths is {list(strengths.shape)}; "
            f"need [{rows}] and [{rows}, 3]"
        )
    require_one_device(logits, prompt_tokens, counts, holders, strengths)
    choose("penalise", logits.device.type)(logits, prompt_tokens, counts, holders, strengths)
