"""The header of a .gguf file: metadata, and where its tensors lie. No torch.

Little-endian: "GGUF", version, counts of tensors and of metadata, the metadata, the tensors' names,
shapes, types and places, and from the next aligned byte on their numbers. Nothing in a file is
believed before it is checked against the file's size.

Source: ggml's `docs/gguf.md`, versions 2 and 3.
"""

import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from backends.errors import ModelLoadError
from backends.gguf.types import OTHERS, TYPES, TensorType

SUFFIX: Final = ".gguf"
_VERSIONS: Final = (2, 3)
_ALIGNMENT: Final = 32
_MOST_DIMENSIONS: Final = 4
_MOST_NESTING: Final = 4
_PART: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_STRING: Final = 8
_ARRAY: Final = 9
_NUMBERS: Final = dict(
    enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", "", "", "<Q", "<q", "<d"))
)
"""struct's formats of the metadata types by number."""


class Tensor(NamedTuple):
    """A tensor and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as torch has it; the file says it the other way round."""
    kind: TensorType
    data: npt.NDArray[np.uint8]
    """[rows, bytes of a row], in the mapped file."""


class GgufFile(NamedTuple):
    """A model's file, or all parts of one."""

    path: Path
    paths: tuple[Path, ...]
    """Of all parts."""
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def need(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """Return a value that must be there.

        Raises:
            ModelLoadError: it is missing, or of another type.
        """
        value = self.find(key, kind)
        if value is None:
            raise ModelLoadError(
                f"{str(self.path)!r} lacks the metadata key {key!r}; convert again"
            )
        return value

    def find(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """Return a value, or None if it is not there.

        Raises:
            ModelLoadError: it is of another type.
        """
        value = self.metadata.get(key)
        if value is None or (isinstance(value, kind) and not (kind is int and value is True)):
            return value
        raise ModelLoadError(f"{str(self.path)!r}: the metadata key {key!r} is {value!r:.80}")


def is_gguf(path: Path) -> bool:
    """Whether a model's path names a .gguf file, not a folder."""
    return path.suffix == SUFFIX and not path.is_dir()


def names_of_parts(path: Path) -> tuple[Path, ...]:
    """What the parts of a model are called, by the name of any; of a whole file, itself."""
    match = _PART.fullmatch(path.name)
    count = int(match[3]) if match else 1
    if match is None or count < 2:
        return (path,)
    names = (f"{match[1]}-{place:05}-of-{count:05}.gguf" for place in range(1, count + 1))
    return tuple(path.with_name(name) for name in names)


def all_parts(path: Path) -> tuple[Path, ...]:
    """The files of a model split as NAME-00001-of-0000N.gguf, whichever of them is named.

    Raises:
        ModelLoadError: one is not there.
    """
    parts = names_of_parts(path)
    for part in parts:
        if not part.is_file():
            beside = f", which {path.name!r} is a part with" if part != path else ""
            raise ModelLoadError(f"there is no file {str(part)!r}{beside}")
    return parts


def open_gguf(path: Path) -> GgufFile:
    """Read the headers of a file and, if it is split, of all parts.

    Raises:
        ModelLoadError: a file is missing, cut, no GGUF, or says what cannot be; names it.
    """
    paths = all_parts(path)
    metadata: Mapping[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for place, part in enumerate(paths):
        own, found = _Header(part).read()
        metadata = metadata or own
        number, count = own.get("split.no", 0), own.get("split.count", 0) or 1
        if (number, count) != (place, len(paths)):
            raise ModelLoadError(
                f"{str(part)!r} says that it is part {number} of {count} (counted from 0), but its "
                f"name makes it {place} of {len(paths)}; keep the parts' own names, side by side"
            )
        twice = tensors.keys() & found.keys()
        if twice:
            raise ModelLoadError(f"{str(part)!r}: tensor {min(twice)!r} is in another part, too")
        tensors |= found
    return GgufFile(path, paths, metadata, tensors)


class _Header:
    """Reads one file from its first byte on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as opened:
                self.bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty.
            raise ModelLoadError(f"cannot read {str(path)!r}: {error}") from error
        self.place = 0

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return metadata and tensors."""
        if (magic := self.bytes[:4]) != b"GGUF":
            self.refuse(f"begins with {magic!r}, not with b'GGUF'; it is no GGUF file")
        self.place = 4
        version = self.number("<I")
        if version not in _VERSIONS:
            big_endian = version & 0xFFFF == 0
            words = "is big-endian" if big_endian else f"is of GGUF version {version}"
            self.refuse(f"{words}; we read little-endian files of versions 2 and 3: convert again")
        num_tensors, num_values = self.number("<Q"), self.number("<Q")
        # The least that one can take: an empty name, its number of dimensions or its type, a value.
        self.require(13 * num_values + 32 * num_tensors, "its header")
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self.string()
            if key in metadata:
                self.refuse(f"has the metadata key {key!r} twice")
            metadata[key] = self.value(self.number("<I"))
        return metadata, self.tensors(num_tensors, self.alignment(metadata))

    def tensors(self, count: int, alignment: int) -> dict[str, Tensor]:
        """Read the places of all tensors, and check that their bytes are there."""
        places = [self.place_of_tensor() for _ in range(count)]
        start = -(-self.place // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in places:
            if name in tensors:
                self.refuse(f"has the tensor {name!r} twice")
            if offset % alignment:
                self.refuse(f"tensor {name!r} begins at {offset}, no multiple of {alignment}")
            rows = math.prod(shape[:-1])
            width = shape[-1] // kind.elements * kind.nbytes
            self.place = start + offset
            self.require(rows * width, f"tensor {name!r}")
            data = np.frombuffer(self.bytes, np.uint8, rows * width, self.place)
            tensors[name] = Tensor(name, shape, kind, data.reshape(rows, width))
        return tensors

    def place_of_tensor(self) -> tuple[str, tuple[int, ...], TensorType, int]:
        """Read a tensor's name, shape, type and offset."""
        name, count = self.string(), self.number("<I")
        if not 1 <= count <= _MOST_DIMENSIONS:
            self.refuse(f"tensor {name!r} has {count} dimensions; allowed: 1 to {_MOST_DIMENSIONS}")
        shape = tuple(self.number("<Q") for _ in range(count))[::-1]
        number, offset = self.number("<I"), self.number("<Q")
        kind = TYPES.get(number)
        if kind is None:
            known = ", ".join(kind.name for kind in TYPES.values())
            self.refuse(
                f"tensor {name!r} is of type {OTHERS.get(number, number)}, which we do not read; "
                f"take a file of one of these, such as Q4_K_M or Q8_0: {known}"
            )
        if not all(shape) or shape[-1] % kind.elements:
            self.refuse(
                f"tensor {name!r} is {list(shape)}; a row of {kind.name} must be a multiple of "
                f"{kind.elements}, and none empty"
            )
        return name, shape, kind, offset

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        """Of the tensors' bytes."""
        value = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(value, int) or value < 1 or value & (value - 1):
            self.refuse(f"general.alignment is {value!r}; allowed: a power of two")
        return value

    def value(self, kind: int, depth: int = 0) -> Any:
        """Read a metadata value."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(self.format_of(kind))
        inner, count = self.number("<I"), self.number("<Q")
        if depth == _MOST_NESTING:
            self.refuse(f"nests arrays more than {_MOST_NESTING} deep")
        if inner in (_STRING, _ARRAY):
            self.require(8 * count, f"an array of {count}")
            if inner == _STRING:
                return self.strings(count)
            return [self.value(inner, depth + 1) for _ in range(count)]
        layout = self.format_of(inner)
        return list(
            struct.unpack(f"<{count}{layout[1]}", self.take(count * struct.calcsize(layout)))
        )

    def format_of(self, kind: int) -> str:
        """struct's format of a number's type."""
        layout = _NUMBERS.get(kind)
        if not layout:
            self.refuse(f"has metadata of the unknown type {kind}")
        return layout

    def string(self) -> str:
        """Read a string; tokens of old files may be no UTF-8."""
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def strings(self, count: int) -> list[str]:
        """Read many strings, such as a vocabulary's: hundreds of thousands."""
        data, place, end = self.bytes, self.place, len(self.bytes)
        found: list[str] = []
        for _ in range(count):
            length = int.from_bytes(data[place : place + 8], "little")
            place += 8
            if place + length > end:
                self.require(end, "an array of strings")
            found.append(data[place : place + length].decode("utf-8", "replace"))
            place += length
        self.place = place
        return found

    def number(self, layout: str) -> Any:
        """Read one number."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def take(self, count: int) -> bytes:
        """Read so many bytes."""
        self.require(count, "its header")
        self.place += count
        return self.bytes[self.place - count : self.place]

    def require(self, count: int, what: str) -> None:
        """Refuse a file that ends before `count` more bytes."""
        if self.place + count > len(self.bytes):
            self.refuse(
                f"ends after {len(self.bytes)} bytes, but {what} goes on to {self.place + count}; "
                "it is cut or damaged: fetch it again"
            )

    def refuse(self, words: str) -> NoReturn:
        """Raise ModelLoadError."""
        raise ModelLoadError(f"{str(self.path)!r} {words}")
