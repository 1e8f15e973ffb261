"""Which implementation of an op runs where: decided here and nowhere else.

======  ================================================================
device  implementation
======  ================================================================
cpu     ``native`` (C++); ``torch_cpu`` where it cannot be built, logged
cuda    ``triton``
other   none: KernelUnavailableError, never a guess
======  ================================================================

``HEADGATE_KERNELS=reference|cpu|native|triton`` overrides the table for every op in the process. It
is read when an op first runs on a device type; `forget_choices` makes it be read again.
"""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from kernels.errors import KernelUnavailableError

Implementation = Literal["reference", "torch_cpu", "native", "triton"]

ENV_OVERRIDE = "HEADGATE_KERNELS"

_FOR_OVERRIDE: dict[str, Implementation] = {
    "reference": "reference",
    "cpu": "torch_cpu",
    "native": "native",
    "triton": "triton",
}

_FOLDERS = {
    "paged_attention": "paged_attention",
    "store_kv": "store_kv",
    "rms_norm": "rms_norm",
    "add_rms_norm": "rms_norm",
    "rope": "rope",
    "rope_store": "rope_store",
    "silu_mul": "gated_mul",
    "gelu_mul": "gated_mul",
    "quant_linear": "quant_linear",
    "packed_linear": "packed_linear",
    "dense_linear": "dense_linear",
    "group_quant_linear": "group_quant_linear",
    "scaled_linear": "scaled_linear",
    "sample": "sampling",
    "penalise": "sampling",
    "route_experts": "moe",
    "expert_mlp": "moe",
    "lora_add": "lora",
}
_PLAIN_ON_CPU = frozenset(
    {
        "dense_linear",
        "scaled_linear",
        "sample",
        "penalise",
    }
)
"""On a CPU these run their reference: eager torch has nothing faster to say it with."""
_FILES: dict[Implementation, str] = {
    "reference": "reference",
    "torch_cpu": "cpu",
    "native": "native",
    "triton": "kernel",
}


def op_names() -> tuple[str, ...]:
    """Every op that has a row in the table."""
    return tuple(_FOLDERS)


def load(op: str, implementation: Implementation) -> Callable[..., Any]:
    """Import one implementation of an op, without asking whether it is the right one here."""
    if op in _PLAIN_ON_CPU and implementation != "triton":
        implementation = "reference"
    module = import_module(f"kernels.{_FOLDERS[op]}.{_FILES[implementation]}")
    function: Callable[..., Any] = getattr(module, op)
    return function


@cache
def choose(op: str, device_type: str) -> Callable[..., Any]:
    """Pick the implementation of `op` for tensors on `device_type`; cached after the first call.

    Raises:
        KernelUnavailableError: no implementation for this device, or the override cannot run on it.
    """
    return load(op, implementation_for(device_type))


def implementation_for(device_type: str) -> Implementation:
    """Name the implementation that runs on `device_type`, honouring the override."""
    override = os.environ.get(ENV_OVERRIDE)
    if override:
        return _overridden(override, device_type)
    if device_type == "cpu":
        return "native" if _native_available() else "torch_cpu"
    if device_type == "cuda":
        _require_triton(device_type)
        return "triton"
    raise KernelUnavailableError(
        f"no kernels for device type {device_type!r}; use cpu or cuda tensors, "
        f"or set {ENV_OVERRIDE}=reference"
    )


def _overridden(override: str, device_type: str) -> Implementation:
    if override not in _FOR_OVERRIDE:
        raise KernelUnavailableError(
            f"{ENV_OVERRIDE}={override!r} is not known; use one of {sorted(_FOR_OVERRIDE)}"
        )
    implementation = _FOR_OVERRIDE[override]
    if implementation == "triton":
        _require_triton(device_type)
    if implementation in ("torch_cpu", "native") and device_type != "cpu":
        raise KernelUnavailableError(
            f"{ENV_OVERRIDE}={override!r} but the tensors are on {device_type!r}"
        )
    if implementation == "native" and not _native_available():
        raise KernelUnavailableError(
            f"{ENV_OVERRIDE}={override!r} but the C++ kernels could not be built; "
            f"the log says why, or set {ENV_OVERRIDE}=cpu"
        )
    return implementation


def _native_available() -> bool:
    from kernels.native import available

    return available()


def _require_triton(device_type: str) -> None:
    if find_spec("triton") is None:
        raise KernelUnavailableError(
            "triton is not installed; install it (Linux only) or "
            f"set {ENV_OVERRIDE}=reference to run plain PyTorch"
        )
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise KernelUnavailableError(
            f"triton needs a CUDA device but the tensors are on {device_type!r}; move them, "
            "or set TRITON_INTERPRET=1 before the first import to interpret the kernels"
        )


def forget_choices() -> None:
    """Drop the cached choices, so that a changed override takes effect."""
    choose.cache_clear()
