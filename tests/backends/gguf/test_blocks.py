"""The numbers of every type, beside the `gguf` package's, which is llama.cpp's own reference."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from backends.gguf.blocks import dequantise
from backends.gguf.types import OTHERS, TYPES


@pytest.mark.parametrize("number", TYPES)
def test_blocks_stand_for_the_same_bits_as_in_ggml(number: int) -> None:
    """Bytes by chance, as any tensor may hold them: every number of every block, bit for bit."""
    kind = TYPES[number]
    blocks = 4096 // kind.elements
    raw = np.random.default_rng(number).integers(0, 256, (6, blocks * kind.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(raw, GGMLQuantizationType(number))
    ours = dequantise(torch.from_numpy(raw.copy()), kind).numpy()
    same = (theirs.view(np.uint32) == ours.view(np.uint32)) | (np.isnan(theirs) & np.isnan(ours))
    assert ours.shape == (6, 4096)
    assert same.all()


def test_types_have_the_names_and_sizes_of_ggml() -> None:
    """A number that we mistook would read another type's blocks."""
    for number, kind in TYPES.items():
        assert GGMLQuantizationType(number).name == kind.name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (kind.elements, kind.nbytes)
    theirs = {kind.value: kind.name for kind in GGMLQuantizationType}
    assert {number: name for number, name in OTHERS.items() if number in theirs} == {
        number: name for number, name in theirs.items() if number not in TYPES
    }


def test_long_tensors_are_read_in_parts_that_agree() -> None:
    """A tensor longer than what is widened at once equals its rows read one by one."""
    kind = next(kind for kind in TYPES.values() if kind.name == "Q8_0")
    raw = np.random.default_rng(0).integers(0, 128, (257, 128 * 34), dtype=np.uint8)
    raw[:, 1::34] = 0x20  # Scales that are numbers.
    rows = torch.from_numpy(raw)
    whole = dequantise(rows, kind, torch.float16)
    assert torch.equal(whole[-1:], dequantise(rows[-1:].clone(), kind, torch.float16))
    assert whole.dtype == torch.float16
