"""Rotary position tables for every supported scaling of the angles.

Source: Su et al. 2021, "RoFormer"; Peng et al. 2023, "YaRN" (§3.2–3.4); Llama 3.1's smoothing as
published with its weights. Numbers agree with transformers' `modeling_rope_utils`.
"""

import math

import torch
from torch import Tensor

from backends.models.config import RopeParameters


def inverse_frequencies(rope: RopeParameters, head_dim: int) -> tuple[Tensor, float]:
    """Return the angle per position of each pair, and what to multiply cos and sin by.

    Args:
        rope: The model's parameters. `dynamic` gives the unscaled angles: it starts to scale only
            past `max_position_embeddings`, where a paged cache would hold keys rotated by
            different angles; the engine therefore ends its context there.
        head_dim: Size of one head; even.

    Returns:
        [head_dim / 2] fp32 and a factor.
    """
    angles, factor = _scaled(rope, head_dim)
    if rope.divisors is not None:
        angles = angles / torch.tensor(rope.divisors, dtype=torch.float32)
    return angles, factor


def _scaled(rope: RopeParameters, head_dim: int) -> tuple[Tensor, float]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / rope.rope_theta**exponents
    if rope.rope_type == "linear":
        return plain / rope.factor, 1.0
    if rope.rope_type == "llama3":
        return _llama3(plain, rope), 1.0
    if rope.rope_type == "yarn":
        return _yarn(rope, head_dim, exponents), _yarn_attention_factor(rope)
    return plain, 1.0


def cos_sin_cache(
    rope: RopeParameters, head_dim: int, positions: int, device: torch.device
) -> Tensor:
    """Return [positions, head_dim] fp32: each row the cosines of its angles, then the sines."""
    inverse, factor = inverse_frequencies(rope, head_dim)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse[None, :]
    return (torch.cat((angles.cos(), angles.sin()), dim=1) * factor).to(device)


def _llama3(plain: Tensor, rope: RopeParameters) -> Tensor:
    """Divide long waves by the factor, leave short ones, blend those between."""
    original = float(rope.original_max_position_embeddings or 0)
    wave = 2 * math.pi / plain
    smooth = (original / wave - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    long = wave > original / rope.low_freq_factor
    short = wave < original / rope.high_freq_factor
    return torch.where(long, plain / rope.factor, torch.where(short, plain, blended))


def _yarn(rope: RopeParameters, head_dim: int, exponents: Tensor) -> Tensor:
    """Interpolate slow pairs, keep fast ones, ramp between them (NTK by parts)."""
    base, original = rope.rope_theta, float(rope.original_max_position_embeddings or 0)

    def pair_that_turns(times: float) -> float:
        turns = math.log(original / (times * 2 * math.pi))
        return head_dim * turns / (2 * math.log(base))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    waves = base**exponents
    return 1.0 / (rope.factor * waves) * ramp + 1.0 / waves * (1 - ramp)


def _yarn_attention_factor(rope: RopeParameters) -> float:
    """YaRN's temperature, folded into cos and sin."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def magnitude(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
    return magnitude(1.0)
