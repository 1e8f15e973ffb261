"""What the factory derives from model and machine."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from backends.engine.dtypes import pick_dtypes
from backends.engine.factory import pick_device, pick_threads
from backends.engine.options import EngineOptions
from backends.models.config import ModelConfig
from backends.models.families import read_family

CPU = torch.device("cpu")


def _config(layers: int) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=32_000,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        family=read_family({}, "config.json", layers),
    )


@pytest.mark.parametrize(
    ("asked", "layers", "wanted"),
    [
        ({"deterministic": True}, 1, (torch.float32, torch.float32)),
        ({}, 10_000, (torch.bfloat16, torch.float32)),
        ({"dtype": "float16"}, 1, (torch.float16, torch.float32)),
        ({"dtype": "float32", "kv_cache_dtype": "int8"}, 1, (torch.float32, torch.int8)),
    ],
    ids=["deterministic", "too large", "told", "both told"],
)
def test_dtypes_on_the_cpu_are_not_measured_where_they_are_given(
    asked: dict[str, Any], layers: int, wanted: tuple[torch.dtype, torch.dtype]
) -> None:
    """Options win; weights that would fill the memory take bf16; what must repeat takes fp32."""
    assert pick_dtypes(EngineOptions(model="m", **asked), _config(layers), CPU) == wanted


def test_dtypes_on_a_gpu_are_bf16_unless_told() -> None:
    """Keys and values follow."""
    gpu = torch.device("cuda")
    half = EngineOptions(model="m", dtype="float16")
    for options, wanted in ((EngineOptions(model="m"), torch.bfloat16), (half, torch.float16)):
        assert pick_dtypes(options, _config(1), gpu) == (wanted, wanted)


def test_threads_of_small_models_depend_on_how_threads_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spinning threads: one for a small model. A large one always gets every core."""
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert pick_threads(2**20) == 1
    assert pick_threads(2**40) == cores
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert pick_threads(2**20) == min(cores, 4)


def test_package_makes_threads_wait_passively_unless_told_otherwise() -> None:
    """Importing us before torch sets the policy once; torch first, or a user's choice, stands."""
    show = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    for code, own, wanted in (
        ("import backends", None, "PASSIVE"),
        ("import torch, backends", None, "None"),
        ("import backends", "ACTIVE", "ACTIVE"),
    ):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        if own is not None:
            environment["OMP_WAIT_POLICY"] = own
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; {show}"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        assert done.stdout.strip() == wanted


def test_devices_that_are_not_there_are_refused() -> None:
    """Nonsense names what is allowed; a GPU that torch does not see says so."""
    assert pick_device("cpu") == CPU
    with pytest.raises(ValueError, match="allowed: auto, cpu, cuda"):
        pick_device("quantum")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            pick_device("cuda")
