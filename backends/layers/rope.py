"""Rotary position tables for every supported scaling of the angles.

Source: Su et al. 2021, "RoFormer"; Peng et al. 2023, "YaRN" (§3.2–3.4); Ding et al. 2024,
"LongRoPE"; Llama 3.1's smoothing as published with its weights. Numbers agree with transformers'
`modeling_rope_utils`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from backends.models.config import ModelConfig, RopeParameters


def inverse_frequencies(
    rope: RopeParameters, head_dim: int, positions: int | None = None
) -> tuple[Tensor, float]:
    """Return the angle per position of each pair, and what to multiply cos and sin by.

    Args:
        rope: The model's parameters. `dynamic` gives the unscaled angles: it starts to scale only
            past `max_position_embeddings`, where a paged cache would hold keys rotated by
            different angles; the engine therefore ends its context there.
        head_dim: Size of one head, or of what is rotated of it; even.
        positions: The longest context; None: as trained. `longrope` has other angles beyond that,
            for all positions: keys of a paged cache cannot change when a sequence grows longer.

    Returns:
        [head_dim / 2] fp32 and a factor.
    """
    angles, factor = _scaled(rope, head_dim, positions or 0)
    if rope.divisors is not None:
        angles = angles / torch.tensor(rope.divisors, dtype=torch.float32)
    return angles, factor


def _scaled(rope: RopeParameters, head_dim: int, positions: int) -> tuple[Tensor, float]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / rope.rope_theta**exponents
    if rope.rope_type == "linear":
        return plain / rope.factor, 1.0
    if rope.rope_type == "llama3":
        return _llama3(plain, rope), 1.0
    if rope.rope_type == "yarn":
        return _yarn(rope, head_dim, exponents), _yarn_attention_factor(rope)
    if rope.rope_type == "longrope":
        beyond = positions > (rope.original_max_position_embeddings or 0)
        divisors = rope.long_factor if beyond else rope.short_factor
        return plain / torch.tensor(divisors), _longrope_attention_factor(rope)
    return plain, 1.0


def cos_sin_cache(
    rope: RopeParameters, head_dim: int, positions: int, device: torch.device
) -> Tensor:
    """Return [positions, head_dim] fp32: each row the cosines of its angles, then the sines.

    Pairs that are not rotated come last, with an angle of 0; see `qkv_order`.
    """
    rotary_dim = rope.rotary_dim(head_dim)
    inverse, factor = inverse_frequencies(rope, rotary_dim, positions)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse[None, :]
    still = (0, (head_dim - rotary_dim) // 2)
    cos = functional.pad(angles.cos() * factor, still, value=1.0)
    sin = functional.pad(angles.sin() * factor, still)
    return torch.cat((cos, sin), dim=1).to(device)


def qkv_order(config: ModelConfig) -> Tensor | None:
    """The order of fused queries', keys' and values' channels in which pairs lie half a head apart.

    Where only a part of a head is rotated, its pairs lie closer. Scores do not change when the
    dimensions of queries and keys change places alike; values stay as they are.

    Returns:
        [N] int64; None: as they are stored, since all is rotated.
    """
    dim, rotary_dim = config.head_dim, config.rope.rotary_dim(config.head_dim)
    if rotary_dim == dim:
        return None
    halves = (
        torch.arange(dim)[part].view(2, -1) for part in (slice(rotary_dim), slice(rotary_dim, dim))
    )
    of_head = torch.cat(tuple(halves), dim=1).flatten()
    kv_heads = config.num_key_value_heads
    heads = torch.arange(config.num_attention_heads + 2 * kv_heads)[:, None] * dim
    return torch.cat((heads[:-kv_heads] + of_head, heads[-kv_heads:] + torch.arange(dim))).flatten()


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


def _longrope_attention_factor(rope: RopeParameters) -> float:
    """Of Phi-3: more where the context is longer than trained."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1 or rope.original_max_position_embeddings is None:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))
