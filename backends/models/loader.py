"""Tensors out of safetensors files, checked by name and shape before anything runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from backends.errors import ModelLoadError
from backends.layers.coded_linear import coded_linear
from backends.layers.linear import AnyLinear, Linear, fuse_rows
from backends.quantization.at_load import quantize
from backends.quantization.codes import Codes, dequantise, moved, reordered, stack
from backends.quantization.layouts import read
from backends.quantization.schemes import QuantizeAtLoad, StoredQuantization
from kernels.packed_linear import is_faster_packed

INDEX_FILE: Final = "model.safetensors.index.json"
_SINGLE_FILE: Final = "model.safetensors"
EMBEDDING: Final = "model.embed_tokens.weight"
_DERIVED: Final = ".rotary_emb.inv_freq"
"""Old checkpoints store these; we compute them."""
_OF_TEXT: Final = {"language_model.": "", "model.language_model.": "model."}
"""What the names of a text model begin with in one that sees images, too, and its own names."""
_OF_IMAGES: Final = tuple(
    f"{prefix}{part}."
    for prefix in ("", "model.")
    for part in ("vision_tower", "multi_modal_projector")
)


class Tensors(Protocol):
    """Tensors by name."""

    @property
    def folder(self) -> Path:
        """Where they lie, for errors."""
        ...

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        ...

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor."""
        ...

    def ignore(self, name: str) -> None:
        """Let a tensor stand unread."""
        ...

    def codes(self, names: Sequence[str], rows: Sequence[int], columns: int) -> Codes | None:
        """Read layers that share an input, below each other; None where they are plain floats."""
        ...


class Checkpoint:
    """The tensors of a folder by name, read one at a time."""

    def __init__(self, folder: Path, stored: StoredQuantization | None = None) -> None:
        """Open the folder's safetensors, one file or sharded.

        Args:
            stored: How its linear layers are quantised, as its config.json says.

        Raises:
            ModelLoadError: a file is missing, truncated or no safetensors.
        """
        self.folder = folder
        self._stored = stored
        self._files: dict[str, tuple[Any, str]] = {}
        """Of each tensor its file, and its name there."""
        self._taken: set[str] = set()
        for file in weight_files(folder):
            opened = _open(folder / file)
            for name in opened.keys():  # noqa: SIM118 - no mapping
                if not name.startswith(_OF_IMAGES):
                    self._files[_own_name(name)] = (opened, name)

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._files

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor.

        Raises:
            ModelLoadError: it is missing or has another shape.
        """
        if name not in self._files:
            raise ModelLoadError(f"{str(self.folder)!r} has no tensor {name!r}")
        try:
            file, stored = self._files[name]
            tensor: Tensor = file.get_tensor(stored)
        except SafetensorError as error:
            raise ModelLoadError(f"{str(self.folder)!r}: cannot read {name!r}: {error}") from error
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"{str(self.folder)!r}: {name!r} is {list(tensor.shape)}, "
                f"but config.json asks for {list(shape)}"
            )
        self._taken.add(name)
        return tensor

    def ignore(self, name: str) -> None:
        """Let a tensor stand unread."""
        self._taken.add(name)

    def codes(self, names: Sequence[str], rows: Sequence[int], columns: int) -> Codes | None:
        """Read layers that share an input, below each other; None where they are plain floats.

        Raises:
            ModelLoadError: some of them are quantised and others not.
        """
        stored = self._stored
        if stored is None:
            return None
        coded = [stored.mark(name) in self for name in names]
        if any(coded) and not all(coded):
            missing = stored.mark(names[coded.index(False)])
            raise ModelLoadError(
                f"{str(self.folder)!r} has no tensor {missing!r}, though the layers it "
                f"is fused with are {stored.scheme}"
            )
        if not all(coded):
            return None
        shapes = zip(names, rows, strict=True)
        return stack([read(stored, self.take, name, count, columns) for name, count in shapes])

    def check_all_taken(self) -> None:
        """Refuse a checkpoint with weights that the architecture would leave out.

        Raises:
            ModelLoadError: names the first few.
        """
        left = sorted(
            name for name in self._files if name not in self._taken and _DERIVED not in name
        )
        if left:
            raise ModelLoadError(
                f"{str(self.folder)!r} holds {len(left)} tensors that its architecture does not "
                f"use, so answers would be wrong: {', '.join(left[:3])}"
            )


class WeightReader:
    """Turns a checkpoint's tensors into layers of the wanted device, dtype and quantisation."""

    def __init__(
        self,
        checkpoint: Tensors,
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantize: QuantizeAtLoad | None,
        tied: bool,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.quantize = quantize
        self.tied = tied

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read a tensor that is not quantised, in our dtype."""
        return self.checkpoint.take(name, shape).to(self.device, self.dtype)

    def linear(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        columns: int,
        *,
        bias: bool,
        scheme: QuantizeAtLoad | Literal["as asked"] | None = "as asked",
        order: Tensor | None = None,
    ) -> AnyLinear:
        """Read layers that share an input of `columns` values and fuse them by rows.

        Args:
            names: The layers, without `.weight`.
            rows: Output channels of each.
            scheme: How to quantise them, if they are not stored so already.
            order: [sum of rows] int64, of the fused output channels; None: as they are stored.

        Raises:
            ModelLoadError: a tensor is missing or has another shape.
        """
        shapes = list(zip(names, rows, strict=True))
        offset = fuse_rows([self.take(f"{n}.bias", (r,)) for n, r in shapes]) if bias else None
        if offset is not None and order is not None:
            offset = offset[order.to(self.device)]
        codes = self.checkpoint.codes(names, rows, columns)
        if codes is not None:
            return self._coded(codes if order is None else reordered(codes, order), offset)
        weight = fuse_rows(
            [self.checkpoint.take(f"{name}.weight", (r, columns)) for name, r in shapes]
        )
        if order is not None:
            weight = weight[order]
        wanted = self.quantize if scheme == "as asked" else scheme
        if wanted is not None:
            return self._coded(quantize(weight, wanted), offset)
        return Linear(weight.to(self.device), offset, dtype=self.dtype)

    def dense(self, names: Sequence[str], rows: Sequence[int], columns: int) -> Tensor:
        """Read layers and stack them by rows as plain weights, whatever they are stored as."""
        parts = []
        for name, count in zip(names, rows, strict=True):
            codes = self.checkpoint.codes([name], [count], columns)
            if codes is None:
                parts.append(self.checkpoint.take(f"{name}.weight", (count, columns)))
            else:
                parts.append(dequantise(codes))
        return fuse_rows([part.to(self.dtype) for part in parts]).to(self.device)

    def head(self, embedding: Tensor, vocabulary: int, hidden: int) -> AnyLinear:
        """Read the output layer, or build it from the embedding [V, H] where the two are tied.

        Quantised at load it gets 8 bits at least: every answer goes through it.
        """
        scheme: QuantizeAtLoad | None = "int8" if self.quantize == "int4" else self.quantize
        if not self.tied:
            return self.linear(["lm_head"], [vocabulary], hidden, bias=False, scheme=scheme)
        self.checkpoint.ignore("lm_head.weight")
        if scheme is not None:
            return self._coded(quantize(embedding, scheme), None)
        stored = self.checkpoint.take(EMBEDDING, (vocabulary, hidden))
        packed = self.device.type == "cpu" and is_faster_packed(stored, self.dtype)
        return Linear(stored if packed else embedding, dtype=self.dtype)

    def _coded(self, codes: Codes, bias: Tensor | None) -> AnyLinear:
        return coded_linear(moved(codes, self.device), bias, dtype=self.dtype)


def _own_name(name: str) -> str:
    """A text model's tensor as it is called without what sees images around it."""
    for around, own in _OF_TEXT.items():
        if name.startswith(around):
            return own + name.removeprefix(around)
    return name


def weight_files(folder: Path) -> list[str]:
    """Name the folder's weight files."""
    index = folder / INDEX_FILE
    if (folder / _SINGLE_FILE).is_file():
        return [_SINGLE_FILE]
    if not index.is_file():
        raise ModelLoadError(
            f"{str(folder)!r} has neither {_SINGLE_FILE} nor {INDEX_FILE}; "
            "convert the weights to safetensors"
        )
    try:
        content = msgspec.json.decode(index.read_bytes(), type=dict[str, Any])
        names = sorted(set(msgspec.convert(content.get("weight_map"), dict[str, str]).values()))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ModelLoadError(f"{str(index)!r} is no index of safetensors: {error}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelLoadError(f"{str(index)!r} names {name!r}, which is not in the folder")
    return names


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{str(file)!r} is truncated or no safetensors file ({error}); fetch it again"
        ) from error
