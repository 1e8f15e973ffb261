# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Rounding to 8-bit codes in Triton, bit for bit as torch rounds; imported by `kernel.py` files.

A cast from float to int8 truncates, and the interpreter's cast to fp8 loses carries, so values are
rounded while they are fp32 and only then cast.
"""

import triton
import triton.language as tl


@triton.jit
def round_to_int(x):
    """The nearest integer, half to even, of fp32 values under 2^22: the mantissa has no room for
    more once 1.5 * 2^23 is added."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def round_to_fp8(x):
    """The nearest e4m3 number, half to even, of fp32 values up to 448."""
    bits = x.to(tl.int32, bitcast=True)
    # Keep 3 of 23 mantissa bits; add just under half of the last kept one, and one more if it is 1.
    kept = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    normal = kept.to(tl.float32, bitcast=True)
    subnormal = (x + 24576.0) - 24576.0  # 1.5 * 2^14: steps of 2^-9
    return tl.where(tl.abs(x) < 0.015625, subnormal, normal)


@triton.jit
def encode(values, scales, INT8: tl.constexpr):
    """Codes, still fp32, of values over scales that broadcast against them."""
    codes = tl.div_rn(values, scales)
    return round_to_int(codes) if INT8 else round_to_fp8(codes)


@triton.jit
def scale_of(largest, INT8: tl.constexpr):
    """The scale of a group whose largest magnitude is given; a group of zeros gets 1."""
    limit = 127.0 if INT8 else 448.0
    scale = tl.div_rn(largest, tl.full(largest.shape, limit, tl.float32))
    return tl.where(scale > 0, scale, 1.0)
