"""Adapters in C++ for fp32; the rest is eager torch."""

import ctypes
from ctypes import c_int, c_void_p

import torch
from torch import Tensor

from kernels.lora import cpu
from kernels.native import function, require_ok, threads_for
from kernels.native_cache import address


class _Adapters(ctypes.Structure):
    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("scales", c_void_p),
        ("rank", c_int),
        ("inputs", c_int),
        ("channels", c_int),
    )


def lora_add(
    out: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    query_start_lens: Tensor,
    adapters: Tensor,
) -> None:
    if out.dtype != torch.float32 or not out.numel():
        return cpu.lora_add(out, x, a, b, scales, query_start_lens, adapters)
    count, rank, inputs = a.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    scales, starts = scales.contiguous(), query_start_lens.contiguous()
    adapters = adapters.contiguous()
    tokens, channels = out.shape
    weights = _Adapters(a.data_ptr(), b.data_ptr(), scales.data_ptr(), rank, inputs, channels)
    outcome = function("lora_add_f32")(
        out.data_ptr(),
        x.data_ptr(),
        address(weights),
        starts.data_ptr(),
        adapters.data_ptr(),
        adapters.shape[0],
        count,
        out.stride(0),
        x.stride(0),
        threads_for(tokens * rank * (inputs + channels)),
    )
    return require_ok(outcome)
