"""Headers of .gguf files: what is read, and what is refused before anything believes it."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.errors import ModelLoadError
from backends.gguf.file import open_gguf


def _write(path: Path, *, parts: int = 0, **more: Any) -> Path:
    options = {"split_max_tensors": parts} if parts else {}
    writer = GGUFWriter(path, "llama", **options)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60_000)
    writer.add_int16("a.i16", -30_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_float32("a.f32", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "héllo")
    writer.add_array("a.words", ["x", "", "🙂"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.nested", [[1, 2], [3]])
    writer.add_uint64("a.u64", 2**63)
    writer.add_int64("a.i64", -(2**62))
    writer.add_float64("a.f64", 1e-300)
    for key, value in more.items():
        getattr(writer, key)(value)
    writer.add_tensor("m", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("q", np.ones((2, 34), dtype=np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small file with a value of every type."""
    return _write(tmp_path / "m.gguf")


def test_file_gives_back_all_that_was_written(file: Path) -> None:
    """Every type of metadata, and both tensors with their shapes, rows first."""
    found = open_gguf(file)
    own = {key: value for key, value in found.metadata.items() if key.startswith("a.")}
    assert own == {
        "a.u8": 200,
        "a.i8": -3,
        "a.u16": 60_000,
        "a.i16": -30_000,
        "a.i32": -2_000_000_000,
        "a.f32": 0.5,
        "a.bool": True,
        "a.text": "héllo",
        "a.words": ["x", "", "🙂"],
        "a.numbers": [1, -2, 3],
        "a.nested": [[1, 2], [3]],
        "a.u64": 2**63,
        "a.i64": -(2**62),
        "a.f64": 1e-300,
    }
    plain, coded = found.tensors["m"], found.tensors["q"]
    assert (plain.shape, plain.kind.name) == ((3, 4), "F32")
    assert plain.data.view("<f4").tolist() == np.arange(12.0).reshape(3, 4).tolist()
    assert (coded.shape, coded.kind.name, coded.data.shape) == ((2, 32), "Q8_0", (2, 34))
    assert found.need("general.architecture", str) == "llama"


def test_file_of_version_2_reads_as_one_of_version_3(file: Path) -> None:
    """The two differ in what little-endian files do not show."""
    data = bytearray(file.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    file.write_bytes(data)
    assert open_gguf(file).metadata["a.u8"] == 200


def test_file_honours_its_own_alignment(tmp_path: Path) -> None:
    """Tensors lie at multiples of `general.alignment`."""
    file = _write(tmp_path / "m.gguf", add_custom_alignment=256)
    assert open_gguf(file).tensors["m"].data.view("<f4")[2, 3] == 11.0


def test_parts_are_one_model_whichever_is_named(tmp_path: Path) -> None:
    """NAME-00001-of-00002.gguf and its sibling; a missing one is named."""
    _write(tmp_path / "m.gguf", parts=1)
    first, second = sorted(tmp_path.iterdir())
    for named in (first, second):
        found = open_gguf(named)
        assert found.tensors.keys() == {"m", "q"}
        assert found.metadata["a.text"] == "héllo"
        assert found.paths == (first, second)
    lonely = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelLoadError, match="keep the parts' own names"):
        open_gguf(lonely)
    with pytest.raises(ModelLoadError, match=r"no file .*m-00001-of-00002\.gguf"):
        open_gguf(second)


def _at(place: int, layout: str, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into(layout, data, place, value)

    return change


def _after(mark: bytes, layout: str, value: int, skip: int = 0) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into(layout, data, data.index(mark) + len(mark) + skip, value)

    return change


def _twice(data: bytearray) -> None:
    place = data.index(b"a.i16")
    data[place : place + 5] = b"a.u16"


_Q = b"\x01\0\0\0\0\0\0\0q"
REFUSED: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "magic": (_at(0, "<I", 0x11111111), "it is no GGUF file"),
    "version_1": (_at(4, "<I", 1), "is of GGUF version 1"),
    "version_9": (_at(4, "<I", 9), "is of GGUF version 9"),
    "big_endian": (_at(4, ">I", 3), "is big-endian"),
    "tensors": (_at(8, "<Q", 2**62), "cut or damaged"),
    "values": (_at(16, "<Q", 2**63), "cut or damaged"),
    "string": (_after(b"a.text", "<Q", 2**60, 4), "cut or damaged"),
    "array": (_after(b"a.numbers", "<Q", 2**61, 8), "cut or damaged"),
    "words": (_after(b"a.words", "<Q", 2**40, 8), "cut or damaged"),
    "value_type": (_after(b"a.bool", "<I", 77), "unknown type 77"),
    "element_type": (_after(b"a.numbers", "<I", 13, 4), "unknown type 13"),
    "key_twice": (_twice, "'a.u16' twice"),
    "dimensions": (_after(_Q, "<I", 5), "5 dimensions"),
    "no_dimension": (_after(_Q, "<I", 0), "0 dimensions"),
    "huge": (_after(_Q, "<Q", 2**62, 4), "cut or damaged"),
    "empty_rows": (_after(_Q, "<Q", 0, 12), "none empty"),
    "part_of_a_block": (_after(_Q, "<Q", 33, 4), "must be a multiple of 32"),
    "iq4_nl": (_after(_Q, "<I", 20, 20), "type IQ4_NL, which we do not read; take a file"),
    "no_type": (_after(_Q, "<I", 999, 20), "type 999"),
    "far_away": (_after(_Q, "<Q", 2**40, 24), "tensor 'q' goes on to"),
    "not_aligned": (_after(_Q, "<Q", 65, 24), "no multiple of 32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_file_is_refused_by_name(case: str, file: Path) -> None:
    """Each wrong byte is told in words, with the file's name, and takes no memory."""
    change, words = REFUSED[case]
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)
    with pytest.raises(ModelLoadError, match=words) as caught:
        open_gguf(file)
    assert str(file) in str(caught.value)


def test_file_cut_anywhere_is_refused(file: Path) -> None:
    """From no byte at all to all but the last number."""
    data = file.read_bytes()
    for length in (*range(0, len(data) - 64, 37), len(data) - 40):
        file.write_bytes(data[:length])
        with pytest.raises(ModelLoadError, match=r"cut or damaged|cannot read|no GGUF file"):
            open_gguf(file)


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_no_bytes_end_in_another_error(tmp_path_factory: Any, tail: bytes) -> None:
    """Whatever follows a good beginning is read or refused, never anything else."""
    file = tmp_path_factory.mktemp("g") / "m.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + tail)
    with pytest.raises(ModelLoadError):
        open_gguf(file)


def test_deep_arrays_are_refused(file: Path) -> None:
    """A file cannot make the reader call itself without end."""
    deep = struct.pack("<IQ", 9, 1) * 50 + struct.pack("<IQ", 0, 0)
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + deep)
    with pytest.raises(ModelLoadError, match="more than 4 deep"):
        open_gguf(file)


def test_metadata_of_another_type_are_refused(file: Path) -> None:
    """A missing key and a value of another type say which."""
    found = open_gguf(file)
    with pytest.raises(ModelLoadError, match=r"lacks the metadata key 'llama\.block_count'"):
        found.need("llama.block_count", int)
    with pytest.raises(ModelLoadError, match=r"'a\.bool' is True"):
        found.need("a.bool", int)
    with pytest.raises(ModelLoadError, match=r"'a\.text' is 'héllo'"):
        found.find("a.text", list)
