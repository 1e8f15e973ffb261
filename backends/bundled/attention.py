"""Causal attention over packed documents: plain torch, and C++ for training on a CPU.

Letters: B rows, T tokens in a row, H query heads, K key-value heads, D head size.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from backends.bundled.config import ModelSpec

SOURCE: Final = Path(__file__).with_name("attention.cpp")
FLAGS: Final = "-O3 -std=c++17 -fPIC -shared -pthread -march=native -Wno-psabi".split()
SIZES: Final = (16, 32, 64)
"""Head sizes that the C++ is written for."""

logger = logging.getLogger("headgate.bundled")


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, documents: Tensor, spec: ModelSpec) -> Tensor:
    """Let each token look at what its document says up to there.

    Args:
        qkv: [B, T, (H + 2 K) D], queries, keys and values of each token, not yet rotated.
        cos: [T, D] fp32, see `rope_tables`.
        sin: the same shape.
        documents: [B, T] int64; tokens next to each other with one number are one document.
        spec: H, K and D.

    Returns:
        [B, T, H D], in the dtype of `qkv`.
    """
    fast = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and spec.head_dim in SIZES
    if fast and _has_library():
        heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        mixed: Tensor = _attend_native(qkv, cos, sin, documents, heads, kv_heads)[0]
        return mixed
    return attend_reference(qkv, cos, sin, documents, spec)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, T, D] by its position; cos and sin are [T, D]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def attend_reference(
    qkv: Tensor, cos: Tensor, sin: Tensor, documents: Tensor, spec: ModelSpec
) -> Tensor:
    """Do the same in plain torch, on any device.

    Written out because torch's CPU flash attention spends half of a training step in its
    backward pass at these sizes, and takes no mask of documents.
    """
    rows, length, _ = qkv.shape
    heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
    split = qkv.view(rows, length, heads + 2 * kv_heads, -1).transpose(1, 2)
    q, k, v = split[:, :heads], split[:, heads:-kv_heads], split[:, -kv_heads:]
    q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
    groups = heads // kv_heads
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    seen = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
    scores = (q @ k.transpose(2, 3)).float() * spec.head_dim**-0.5
    shares = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    mixed: Tensor = shares.to(v.dtype) @ v
    return mixed.transpose(1, 2).reshape(rows, length, -1)


@torch.library.custom_op("headgate_bundled::attend", mutates_args=())
def _attend_native(
    qkv: Tensor, cos: Tensor, sin: Tensor, documents: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor]:
    """Return the mixed values and the log of each query's sum of shares, [B, T, H] fp32."""
    rows, length, width = qkv.shape
    size = width // (heads + 2 * kv_heads)
    qkv, documents = qkv.contiguous(), documents.contiguous()
    out = qkv.new_empty(rows, length, heads * size)
    lse = torch.empty(rows, length, heads)
    found = library()
    assert found is not None
    found.attention_forward(
        *_pointers(qkv, cos, sin, documents, out, lse),
        *(ctypes.c_int64(rows), ctypes.c_int64(length)),
        *(heads, kv_heads, size, torch.get_num_threads()),
    )
    return out, lse


@torch.library.custom_op("headgate_bundled::attend_back", mutates_args=())
def _attend_back_native(
    d_out: Tensor,
    qkv: Tensor,
    lse: Tensor,
    cos: Tensor,
    sin: Tensor,
    documents: Tensor,
    heads: int,
    kv_heads: int,
) -> Tensor:
    """Return the gradient of qkv."""
    rows, length, width = qkv.shape
    size = width // (heads + 2 * kv_heads)
    d_out, qkv, documents = d_out.contiguous(), qkv.contiguous(), documents.contiguous()
    d_qkv = torch.empty_like(qkv)
    found = library()
    assert found is not None
    found.attention_backward(
        *_pointers(qkv, d_out, lse, cos, sin, documents, d_qkv),
        *(ctypes.c_int64(rows), ctypes.c_int64(length)),
        *(heads, kv_heads, size, torch.get_num_threads()),
    )
    return d_qkv


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


@_attend_native.register_fake
def _(
    qkv: Tensor, cos: Tensor, sin: Tensor, documents: Tensor, heads: int, kv_heads: int
) -> object:
    rows, length, width = qkv.shape
    size = width // (heads + 2 * kv_heads)
    return qkv.new_empty(rows, length, heads * size), cos.new_empty(rows, length, heads)


@_attend_back_native.register_fake
def _(d_out: Tensor, qkv: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(qkv)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    qkv, cos, sin, documents, ctx.heads, ctx.kv_heads = inputs
    ctx.save_for_backward(qkv, output[1], cos, sin, documents)


def _turn_back(ctx, d_out, _d_lse):  # type: ignore[no-untyped-def]
    kept = ctx.saved_tensors
    d_qkv = _attend_back_native(d_out, *kept, ctx.heads, ctx.kv_heads)
    return d_qkv, None, None, None, None, None


_attend_native.register_autograd(_turn_back, setup_context=_keep)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_library() -> bool:
    return library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """Build the C++ once per source and machine, and load it; None, with a warning, without it."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    try:
        if compiler is None:
            raise OSError("no C++ compiler found")
        machine = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        flags = next((line for line in machine.splitlines() if line.startswith("flags")), "")
        digest = hashlib.sha256(f"{compiler}{FLAGS}{flags}".encode() + SOURCE.read_bytes())
        cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headgate"
        path = cached / f"bundled-attention-{digest.hexdigest()[:20]}.so"
        if not path.exists():
            cached.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cached) as scratch:
                fresh = Path(scratch) / path.name
                command = [*compiler.split(), *FLAGS, str(SOURCE), "-o", str(fresh)]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                fresh.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("bundled_attention_unavailable: %s; training runs slower without it", error)
        return None
