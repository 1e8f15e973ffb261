"""Every op test runs once per implementation that this process can run, against the reference.

Plain: `torch_cpu`, `native` where it builds, and `triton` on a CUDA device.
With TRITON_INTERPRET=1, in a process that `test_triton_interpreted.py` starts: `triton` alone,
interpreted on CPU tensors.
"""

import os

import pytest
import torch
from kernel_cases import Runner

from kernels import native

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "runner" not in metafunc.fixturenames:
        return
    if INTERPRETED:
        runners = [Runner("triton", "cpu")]
    else:
        runners = [Runner("torch_cpu", "cpu")]
        if native.available():
            runners.append(Runner("native", "cpu"))
        if torch.cuda.is_available():
            runners.append(Runner("triton", "cuda"))
    metafunc.parametrize("runner", runners, ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter computes silent garbage in bf16: leave those cases out."""
    if INTERPRETED:
        items[:] = [item for item in items if "bfloat16" not in item.name]
