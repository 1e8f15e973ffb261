"""What the factory derives from model and machine."""

import os
import subprocess
import sys

import pytest
import torch

from backends.engine.factory import pick_device, pick_dtype, pick_threads
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


def test_dtype_is_fp32_on_the_cpu_while_the_weights_fit() -> None:
    """A model whose fp32 weights would fill any memory falls back to bf16; options win."""
    assert pick_dtype("auto", _config(0), CPU) == torch.float32
    assert pick_dtype("auto", _config(10_000), CPU) == torch.bfloat16
    assert pick_dtype("float16", _config(0), CPU) == torch.float16
    assert pick_dtype("auto", _config(0), torch.device("cuda")) == torch.bfloat16


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
