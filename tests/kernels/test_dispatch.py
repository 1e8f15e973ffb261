"""The choice of implementation, and what all implementations of an op have in common."""

import importlib
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernel_cases import paged_batch, random

from kernels import dispatch, native
from kernels.errors import DeviceError, DTypeError, KernelError, KernelUnavailableError, ShapeError
from kernels.gated_mul import silu_mul
from kernels.paged_attention import paged_attention
from kernels.quant_linear import quant_linear
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rope import rope
from kernels.store_kv import store_kv

OVERRIDES = ["reference", "cpu", "triton", *(["native"] if native.available() else [])]


@pytest.fixture(autouse=True)
def _fresh_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(dispatch.ENV_OVERRIDE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch.forget_choices()
    yield
    dispatch.forget_choices()


@pytest.mark.parametrize("op", dispatch.op_names())
@pytest.mark.parametrize("implementation", ["reference", "torch_cpu", "native", "triton"])
def test_implementations_have_the_signature_of_the_op(
    op: str, implementation: dispatch.Implementation
) -> None:
    """Every implementation takes and returns exactly what the public op does."""
    if implementation == "triton":
        pytest.importorskip("triton")
    function = dispatch.load(op, implementation)
    public = getattr(importlib.import_module(function.__module__.rpartition(".")[0]), op)
    assert inspect.signature(function) == inspect.signature(public)


def test_dispatch_chooses_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors run C++ where it can be built, else eager torch; CUDA tensors run Triton."""
    assert dispatch.implementation_for("cpu") == ("native" if native.available() else "torch_cpu")
    pytest.importorskip("triton")
    assert dispatch.implementation_for("cuda") == "triton"


def test_dispatch_obeys_the_override(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment can ask for the plain reference everywhere."""
    monkeypatch.setenv(dispatch.ENV_OVERRIDE, "reference")
    assert dispatch.choose("rope", "cpu").__module__ == "kernels.rope.reference"
    assert dispatch.choose("rope", "cuda").__module__ == "kernels.rope.reference"


@pytest.mark.parametrize(
    ("override", "device_type", "says"),
    [
        ("triton", "cpu", "needs a CUDA device"),
        ("cpu", "cuda", "the tensors are on 'cuda'"),
        ("fastest", "cpu", "'fastest' is not known"),
        (None, "mps", "no kernels for device type 'mps'"),
    ],
)
def test_dispatch_refuses_what_cannot_run(
    monkeypatch: pytest.MonkeyPatch, override: str | None, device_type: str, says: str
) -> None:
    """An impossible choice is an error that says what to do, never a silent fallback."""
    if override is not None:
        monkeypatch.setenv(dispatch.ENV_OVERRIDE, override)
    with pytest.raises(KernelUnavailableError, match=says):
        dispatch.choose("silu_mul", device_type)


def test_dispatch_costs_less_than_a_microsecond() -> None:
    """After the first call, choosing is one cached look-up."""
    dispatch.choose("rope", "cpu")
    best = min(_seconds_of(lambda: dispatch.choose("rope", "cpu")) for _ in range(20))
    assert best < 1e-6


def _seconds_of(call: Callable[[], Any], repeats: int = 200) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def test_package_import_loads_neither_torch_nor_triton() -> None:
    """`import kernels` is light, and no CPU op drags triton in."""
    code = (
        "import sys, kernels; assert 'torch' not in sys.modules; "
        "import torch; loaded = 'triton' in sys.modules; "
        "from kernels.gated_mul import silu_mul; silu_mul(torch.ones(2, 4)); "
        "assert loaded or 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100, env=dict(os.environ))


@pytest.mark.parametrize("override", ["cpu", *(["native"] if native.available() else [])])
def test_ops_ignore_the_default_dtype_of_torch(
    monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    """A loader that sets torch's default dtype changes no result and no buffer size."""
    monkeypatch.setenv(dispatch.ENV_OVERRIDE, override)
    x, weight, angles = random(3, 16), random(16), random(9, 16)
    batch = vars(paged_batch([(1, 5), (3, 7)]))
    calls: list[Callable[[], Any]] = [
        lambda: rms_norm(x, weight, eps=1e-5),
        lambda: add_rms_norm(x, x, weight, eps=1e-5)[1],
        lambda: silu_mul(x),
        lambda: rope(x[:, None], x[:, None], angles, torch.tensor([1, 2, 3]))[0],
        lambda: quant_linear(
            x, torch.ones(6, 16, dtype=torch.int8), torch.ones(6, dtype=torch.float32)
        ),
        lambda: paged_attention(**batch),
    ]
    expected = [call() for call in calls]
    torch.set_default_dtype(torch.bfloat16)
    try:
        actual = [call() for call in calls]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def _attention(**changes: Any) -> Callable[[], Any]:
    arguments = {**vars(paged_batch([(1, 5), (3, 7)])), **changes}
    return lambda: paged_attention(**arguments)


INT8, SCALE, CACHE = torch.ones(6, 8, dtype=torch.int8), torch.ones(6), random(3, 4, 2, 8)
SLOTS = torch.arange(5)
BAD_CALLS: dict[str, tuple[Callable[[], Any], type[KernelError], str]] = {
    "rms_norm_weight": (
        lambda: rms_norm(random(2, 8), random(7), eps=1e-5),
        ShapeError,
        "weight is",
    ),
    "rms_norm_dtype": (
        lambda: rms_norm(torch.ones(2, 8, dtype=torch.int32), random(8), eps=1e-5),
        DTypeError,
        "x is torch.int32",
    ),
    "add_rms_norm_shape": (
        lambda: add_rms_norm(random(2, 8), random(3, 8), random(8), eps=1e-5),
        ShapeError,
        "residual is",
    ),
    "add_rms_norm_dtype": (
        lambda: add_rms_norm(random(2, 8), random(2, 8).half(), random(8), eps=1e-5),
        DTypeError,
        "must be torch.float32",
    ),
    "silu_mul_odd": (lambda: silu_mul(random(2, 7)), ShapeError, "must be even"),
    "silu_mul_dtype": (lambda: silu_mul(random(2, 8).double()), DTypeError, "gate_up is"),
    "rope_head_size": (
        lambda: rope(random(5, 2, 7), random(5, 2, 7), random(9, 7), SLOTS),
        ShapeError,
        "odd",
    ),
    "rope_cache": (
        lambda: rope(random(5, 2, 8), random(5, 2, 8), random(9, 4), SLOTS),
        ShapeError,
        "cos_sin_cache",
    ),
    "rope_positions": (
        lambda: rope(random(5, 2, 8), random(5, 2, 8), random(9, 8), SLOTS[:4]),
        ShapeError,
        "positions",
    ),
    "rope_keys": (
        lambda: rope(random(5, 2, 8), random(4, 2, 8), random(9, 8), SLOTS),
        ShapeError,
        "k is",
    ),
    "store_kv_cache": (
        lambda: store_kv(random(5, 3, 8), random(5, 3, 8), CACHE, CACHE, SLOTS),
        ShapeError,
        "k_cache is",
    ),
    "store_kv_strided_cache": (
        lambda: store_kv(
            random(5, 4, 8), random(5, 4, 8), CACHE.transpose(1, 2), CACHE.transpose(1, 2), SLOTS
        ),
        ShapeError,
        "contiguous",
    ),
    "store_kv_slots": (
        lambda: store_kv(random(5, 2, 8), random(5, 2, 8), CACHE, CACHE, SLOTS.float()),
        DTypeError,
        "slot_mapping is",
    ),
    "quant_linear_inputs": (
        lambda: quant_linear(random(2, 7), INT8, SCALE),
        ShapeError,
        "weight_int8 is",
    ),
    "quant_linear_weight": (
        lambda: quant_linear(random(2, 8), INT8.float(), SCALE),
        DTypeError,
        "must be torch.int8",
    ),
    "quant_linear_scale": (
        lambda: quant_linear(random(2, 8), INT8, SCALE.half()),
        DTypeError,
        "scale is",
    ),
    "quant_linear_dense": (
        lambda: quant_linear(random(2, 8), INT8, SCALE, dense=random(8, 6)),
        ShapeError,
        "dense is",
    ),
    "rms_norm_device": (
        lambda: rms_norm(random(2, 8), random(8).to("meta"), eps=1e-5),
        DeviceError,
        "on cpu, another on meta",
    ),
    "quant_linear_device": (
        lambda: quant_linear(random(2, 8), INT8, SCALE.to("meta")),
        DeviceError,
        "another on meta",
    ),
    "store_kv_device": (
        lambda: store_kv(random(5, 2, 8), random(5, 2, 8), CACHE, CACHE, SLOTS.to("meta")),
        DeviceError,
        "another on meta",
    ),
    "paged_attention_device": (
        _attention(context_lens=torch.zeros(2, dtype=torch.int32, device="meta")),
        DeviceError,
        "another on meta",
    ),
    "paged_attention_window": (_attention(window=0), ShapeError, "at least itself"),
    "paged_attention_sinks": (_attention(sinks=random(3)), ShapeError, r"need \[4\]"),
    "paged_attention_tree": (
        _attention(tree_mask=torch.ones(4, 2, dtype=torch.bool)),
        ShapeError,
        "max_query_len is 3",
    ),
    "paged_attention_heads": (_attention(q=random(4, 3, 16)), ShapeError, "do not divide"),
    "paged_attention_head_size": (_attention(q=random(4, 4, 8)), ShapeError, "head size is 8"),
    "paged_attention_tables": (_attention(max_context_len=99), ShapeError, "too short"),
    "paged_attention_starts": (
        _attention(query_start_lens=torch.tensor([0, 4], dtype=torch.int32)),
        ShapeError,
        "query_start_lens",
    ),
    "paged_attention_lens": (
        _attention(context_lens=torch.tensor([5, 7])),
        DTypeError,
        "context_lens is torch.int64",
    ),
    "paged_attention_cache": (_attention(v_cache=random(5, 4, 2, 8)), ShapeError, "v_cache is"),
}


@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.parametrize("name", BAD_CALLS)
def test_op_refuses_bad_input_alike_on_every_implementation(
    monkeypatch: pytest.MonkeyPatch, override: str, name: str
) -> None:
    """The same wrong call raises the same error before any implementation is reached."""
    call, error, says = BAD_CALLS[name]
    monkeypatch.setenv(dispatch.ENV_OVERRIDE, override)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(error, match=says):
        call()
