"""A KV cache as C++ takes it: pointers, scales and one number for the dtype (see `cache.h`)."""

import ctypes
from ctypes import Structure, c_int, c_int64, c_void_p

import torch
from torch import Tensor

CACHE_KINDS = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.int8: 3,
    torch.float8_e4m3fn: 4,
}
HEAD_DIM_MULTIPLE = 16
"""Heads are read by the widest vector."""


class CacheHalf(Structure):
    """Keys or values."""

    _fields_ = (("data", c_void_p), ("scales", c_void_p))


class LayerCache(Structure):
    """Keys and values."""

    _fields_ = (("keys", CacheHalf), ("values", CacheHalf))


class CacheShape(Structure):
    """What keys and values of every layer have in common."""

    _fields_ = (
        ("num_blocks", c_int64),
        ("block_size", c_int),
        ("heads", c_int),
        ("dim", c_int),
        ("kind", c_int),
    )


def is_writable(cache: Tensor) -> bool:
    """Whether C++ can write a cache [N, B, Hkv, D]."""
    return cache.dtype in CACHE_KINDS and cache.is_contiguous()


def is_readable(cache: Tensor) -> bool:
    """Whether it can read it too."""
    return is_writable(cache) and cache.shape[3] % HEAD_DIM_MULTIPLE == 0


def half_of(cache: Tensor, scales: Tensor | None) -> CacheHalf:
    """Point to one layer's keys, or its values."""
    return CacheHalf(cache.data_ptr(), None if scales is None else scales.data_ptr())


def shape_of(cache: Tensor) -> CacheShape:
    """Read the shape off one layer's keys."""
    return CacheShape(*cache.shape, CACHE_KINDS[cache.dtype])


def address(structure: Structure) -> int:
    """Return where a structure lies; it must be kept alive."""
    return ctypes.addressof(structure)
