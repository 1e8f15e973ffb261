"""Measured launch options: where they come from, and that a kernel launches with them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernel_cases import Runner, random, reference
from tolerances import assert_close

from kernels import tuning

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._table.cache_clear()
    yield
    tuning._table.cache_clear()


def test_options_stand_until_somebody_measures() -> None:
    """Without a file a kernel's own choice is returned as it is."""
    chosen = {"BLOCK_N": 64, "num_warps": 4}
    assert tuning.tuned("gemm", "m1", CPU, chosen) is chosen


def test_saved_options_are_found_and_added_to() -> None:
    """A second measurement adds to the first; what it does not name stays the kernel's choice."""
    first = tuning.save("cpu", {"device": "here"}, {"gemm": {"m1": {"BLOCK_N": 32}}})
    tuning.save("cpu", {"device": "here"}, {"gemm": {"m4": {"num_warps": 8}}})
    chosen = {"BLOCK_N": 64, "num_warps": 4}
    assert tuning.tuned("gemm", "m1", CPU, chosen) == {"BLOCK_N": 32, "num_warps": 4}
    assert tuning.tuned("gemm", "m4", CPU, chosen) == {"BLOCK_N": 64, "num_warps": 8}
    assert json.loads(first.read_text())["device"] == "here"


def test_tried_options_hold_for_a_block_only() -> None:
    """A candidate is in force while it is measured, and what stood before stands again."""
    tuning.save("cpu", {}, {"gemm": {"m1": {"BLOCK_N": 32}}})
    with tuning.trying("gemm", "m1", CPU, {"BLOCK_N": 16}):
        assert tuning.tuned("gemm", "m1", CPU, {"BLOCK_N": 64})["BLOCK_N"] == 16
    assert tuning.tuned("gemm", "m1", CPU, {"BLOCK_N": 64})["BLOCK_N"] == 32


def test_shape_classes_sort_rows_and_keep_layers_apart() -> None:
    """Neighbouring batch sizes share a class; another layer or dtype has its own."""
    classes = [tuning.linear_class(rows, 4096, 1024, torch.bfloat16) for rows in (1, 2, 4, 5, 2000)]
    assert classes[1] == classes[2]
    assert len(set(classes)) == 4
    assert classes[0] == "m1-n4096-k1024-bfloat16"
    assert tuning.linear_class(1, 4096, 1024, torch.float16) not in classes


@pytest.mark.parametrize(("rows", "options"), [(1, {"BLOCK_N": 4}), (5, {"BLOCK_M": 32})])
def test_quant_linear_gives_the_same_with_measured_options(
    runner: Runner, rows: int, options: dict[str, int]
) -> None:
    """Options change how a kernel is launched, never what it computes."""
    weight = torch.randint(-127, 128, (70, 96), dtype=torch.int8)
    arguments = (random(rows, 96), weight, torch.full((70,), 1e-3))
    shape = tuning.linear_class(rows, 70, 96, torch.float32)
    with tuning.trying("quant_linear", shape, torch.device(runner.device), options):
        actual = runner("quant_linear", *arguments)
    assert_close(actual, reference("quant_linear", *arguments))
